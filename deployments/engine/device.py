"""A device and the one thread that uses it."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from deployments.errors import TowerUnavailableError

P = ParamSpec("P")
R = TypeVar("R")

TRIM_PERIOD_S = 10.0

logger = logging.getLogger("ray.serve")


class Device:
    """Runs functions on the device's thread and says what its errors mean.

    Torch is imported in the replica only, when a Device is made.

    Args:
        name: of a torch device, or `auto`.
    """

    def __init__(self, name: str) -> None:
        from deployments.model.weights import loading

        self.is_cpu = loading.place(name, "auto").device.type == "cpu"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._fault: str | None = None
        self._trimmed_s = time.monotonic()

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function on the device's thread.

        Raises:
            MemoryError: the device has too little memory for it.
            TowerUnavailableError: the device is lost; this replica will be replaced.
        """
        return await asyncio.wrap_future(self.submit(function, *args, **kwargs))

    def submit(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> "Future[R]":
        """Put a function on the device's thread, behind what is there; see `run` for errors."""
        return self.submit_to(self._thread, function, *args, **kwargs)

    def submit_to(
        self, thread: Executor, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> "Future[R]":
        """Do the same on another thread, beside the device's own."""
        return thread.submit(self._call, partial(function, *args, **kwargs))

    def check_health(self) -> None:
        """Raise RuntimeError once the device is lost."""
        if self._fault is not None:
            raise RuntimeError(f"the device is lost: {self._fault}")

    def _call(self, function: Callable[[], R]) -> R:
        import torch

        try:
            return function()
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise MemoryError(str(error).splitlines()[0]) from error
        except torch.AcceleratorError as error:  # the CUDA context is broken from now on
            self._fault = str(error).splitlines()[0]
            logger.exception("the device is lost")
            raise TowerUnavailableError("the tower's device is lost; retry shortly") from error
        finally:
            self._trim()

    def _trim(self) -> None:
        """Give freed memory back to the system now and then; a GPU's is kept by torch."""
        from deployments.model.runtime import memory

        now_s = time.monotonic()
        if self.is_cpu and now_s > self._trimmed_s + TRIM_PERIOD_S:
            memory.trim()
            self._trimmed_s = now_s
