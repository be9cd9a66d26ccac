"""A device, the one thread that gives it work, and on a GPU another that waits for the results."""

import asyncio
import logging
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from deployments.errors import TowerUnavailableError

P = ParamSpec("P")
R = TypeVar("R")

TRIM_PERIOD_S = 10.0
# How long a thread keeps the interpreter while another waits for it. Python's own 5 ms make the
# hundreds of launches of a batch slow beside a busy event loop: 512 texts took 2.8 s in place of
# 25 ms on an H200, and 66 ms with this (benchmarks/README.md).
SWITCH_INTERVAL_S = 0.0001

FORGET = 0.9  # of the longest launch, after each that is shorter

logger = logging.getLogger("ray.serve")


class Device:
    """Runs functions on the device's thread and says what its errors mean.

    Torch is imported in the replica only, when a Device is made.

    Args:
        name: of a torch device, or `auto`.

    Attributes:
        launch_s: how long the host took to launch a batch, the longest of late.
    """

    def __init__(self, name: str) -> None:
        from deployments.model.weights import loading

        self.is_cpu = loading.place(name, "auto").device.type == "cpu"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._collector = self._thread
        if not self.is_cpu:
            sys.setswitchinterval(SWITCH_INTERVAL_S)
            self._collector = ThreadPoolExecutor(1, thread_name_prefix="collect")
        self.launch_s = 0.0
        self._fault: str | None = None
        self._trimmed_s = time.monotonic()

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function on the device's thread.

        Raises:
            MemoryError: the device has too little memory for it.
            TowerUnavailableError: the device is lost; this replica will be replaced.
        """
        return await asyncio.wrap_future(self.submit(function, *args, **kwargs))

    async def run_launched(self, launch: Callable[[], Callable[[], R]]) -> R:
        """Call `launch` on the device's thread, and what it returns where that may wait.

        A GPU works on what was launched while its thread launches more; see `run` for errors.
        """
        if self.is_cpu:  # where nothing is left to wait for
            return await self.run(_called_twice, launch)
        begin_s = time.monotonic()
        collect = await self.run(launch)
        self.launch_s = max(time.monotonic() - begin_s, FORGET * self.launch_s)
        return await asyncio.wrap_future(self.submit_to(self._collector, collect))

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
            # What the frames of the failed call hold has to be free before less is tried.
            traceback.clear_frames(error.__traceback__)
            torch.cuda.empty_cache()
            raise MemoryError(str(error).splitlines()[0]) from error
        except RuntimeError as error:
            if not self._is_lost(error):
                raise
            self._fault = str(error).splitlines()[0]
            logger.exception("the device is lost")
            raise TowerUnavailableError("the tower's device is lost; retry shortly") from error
        finally:
            self._trim()

    def _is_lost(self, error: RuntimeError) -> bool:
        """Tell whether the CUDA context is broken from now on."""
        import torch

        if isinstance(error, torch.AcceleratorError):
            return True
        if self.is_cpu:
            return False
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return True
        return False

    def _trim(self) -> None:
        """Give freed memory back to the system now and then; a GPU's is kept by torch."""
        from deployments.model.runtime import memory

        now_s = time.monotonic()
        if self.is_cpu and now_s > self._trimmed_s + TRIM_PERIOD_S:
            memory.trim()
            self._trimmed_s = now_s


def _called_twice(launch: Callable[[], Callable[[], R]]) -> R:
    return launch()()
