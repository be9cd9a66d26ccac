"""Works batches off: each Router some at once, the oldest that no other has.

The batches that a Router has share its lines under way evenly, so that a small one does not wait
for the end of a huge one. It takes one more at each look: another Router may have less to do.

A batch is held by a lock that the system takes from a process that dies.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial

from serve_app.batches.folder import Folder
from serve_app.batches.job import BatchJob
from serve_app.batches.objects import Batch
from serve_app.batches.threads import in_thread, to_thread

logger = logging.getLogger("ray.serve")

LOOK_S = 1.0  # between two looks for batches
MOST_HELD = 16  # batches at once: each has some files open
SWEEP_S = 300.0  # between two looks for files that have expired
AFTER_FAULT_S = 5.0  # a full disk is not tried without a pause


class Worker:
    """Works off the batches of a folder.

    Args:
        folder: of files and batches.
        job: works off each of them.
    """

    def __init__(self, folder: Folder, job: BatchJob) -> None:
        self._folder = folder
        self._job = job

    async def run(self) -> None:
        """Work off what there is and what comes, and delete what has expired, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat(self.work_off, LOOK_S))
            sweep = partial(to_thread, self._folder.delete_expired)
            group.create_task(self._repeat(sweep, SWEEP_S))

    async def _repeat(self, work: Callable[[], Awaitable[None]], pause_s: float) -> None:
        while True:
            try:
                await work()
            except Exception:  # whatever it is, the next time may find it mended
                logger.exception("%s is tried again", self._folder.root)
                await asyncio.sleep(AFTER_FAULT_S)
            await asyncio.sleep(pause_s)

    async def work_off(self) -> None:
        """Work off every batch that is open and that nobody else has, until there is none."""
        held: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                await self._take_one(held)
                if not held:
                    return
                working = held.values()
                await asyncio.wait(working, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                held = {name: task for name, task in held.items() if not task.done()}
        finally:
            for task in held.values():
                task.cancel()
            await asyncio.gather(*held.values(), return_exceptions=True)

    async def _take_one(self, held: dict[str, asyncio.Task[None]]) -> None:
        """Begin with the oldest batch that nobody has, if there is one, beside those held."""
        if len(held) >= MOST_HELD:
            return
        for batch in await to_thread(self._folder.open_batches):
            if batch.id not in held:
                with ExitStack() as claim:
                    if await in_thread(claim.enter_context, self._folder.claimed(batch)):
                        work = self._held(batch.id, claim.pop_all())
                        held[batch.id] = asyncio.create_task(work)
                        return

    async def _held(self, batch_id: str, claim: ExitStack) -> None:
        """Work off a batch that is ours; what fails is let go after a pause, to be taken again."""
        try:
            # What another Router made of it since it was read.
            await self._job.run(await to_thread(self._folder.load, Batch, batch_id))
        except Exception:
            logger.exception("%s is tried again", batch_id)
            await asyncio.sleep(AFTER_FAULT_S)
        finally:
            await in_thread(claim.close)
