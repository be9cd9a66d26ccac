"""Looks at something again and again while a block of code runs."""

import threading
import time
from collections.abc import Callable
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Sampler(Generic[T]):
    """Samples on a thread of its own until the block ends.

    Attributes:
        samples: seconds since the block began, and what was seen.
    """

    def __init__(self, look: Callable[[], T], period_s: float) -> None:
        self.samples: list[tuple[float, T]] = []
        self._look = look
        self._period_s = period_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._begin_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        has_ended = False
        while not has_ended:  # the end itself is looked at, too
            has_ended = self._stop.wait(self._period_s)
            at_s = time.monotonic() - self._begin_s
            self.samples.append((at_s, self._look()))


def seconds_until(condition: Callable[[], bool], limit_s: float) -> float | None:
    """Return after how many seconds something holds; None where it does not in time."""
    begin_s = time.monotonic()
    while (passed_s := time.monotonic() - begin_s) < limit_s:
        if condition():
            return round(passed_s, 1)
        time.sleep(0.1)
    return None
