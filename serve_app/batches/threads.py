"""Threads for the folder of batches, which may be far away: requests have others.

Python's own pool, in which large bodies are read and written, has 6 threads on two cores.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

THREADS = ThreadPoolExecutor(16, "batches")


async def to_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in one of these threads."""
    call = partial(function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(THREADS, call)


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in one of these threads, and wait for its end even when cancelled.

    Who is cancelled lets go of its batch: what still wrote would write over its successor's.
    """
    call = asyncio.ensure_future(to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(call)
    finally:
        if not call.done():
            await asyncio.wait([call])
