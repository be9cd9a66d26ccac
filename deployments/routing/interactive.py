"""Which interactive requests a Router has, for work that only fills what they leave."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from deployments.messages import Lane


class Interactive:
    """The interactive requests under way.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._under_way = 0
        self._last_s = float("-inf")
        self._none = asyncio.Event()
        self._none.set()

    @contextmanager
    def request(self, lane: Lane) -> Iterator[None]:
        """Count the block as one of them, if it is of their lane."""
        if lane != "interactive":
            yield
            return
        self._under_way += 1
        self._none.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            self._last_s = self._clock()
            if not self._under_way:
                self._none.set()

    def were_within(self, seconds: float) -> bool:
        """Tell whether there is one now, or was one a short time ago."""
        return self._under_way > 0 or self._clock() - self._last_s <= seconds

    async def gap(self, most_s: float) -> None:
        """Return once there is none, at the latest after a time: other work goes on too."""
        with suppress(TimeoutError):
            async with asyncio.timeout(most_s):
                await self._none.wait()
