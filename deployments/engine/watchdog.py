"""How fast a device works, and whether it still does. Pure: the clock is an argument."""

import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 30.0
FIRST_BATCH_S = 120.0  # before any batch has ended: compilation and cold caches
LEAST_S = 5.0
PATIENCE = 20.0  # times the slowest pace seen of late
BACK_TO_BACK_S = 0.005  # between two batches of which the second had been waiting


class Watchdog:
    """Watches one device: batches begin and end, one at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._batches: deque[tuple[float, float, int]] = deque()  # end, seconds, cost
        self._busy: deque[tuple[float, float, int]] = deque()  # those that followed on another
        self._last_end_s = -WINDOW_S
        self._running: tuple[float, int] | None = None  # begin, cost
        self._proven = False

    def begin(self, cost: int) -> None:
        """Note that a batch of this cost starts."""
        self._running = (self._clock(), cost)

    def end(self) -> float:
        """Note that the batch is over; returns its seconds."""
        assert self._running is not None
        now = self._clock()
        begin, cost = self._running
        batch = (now, now - begin, cost)
        self._batches.append(batch)
        if begin - self._last_end_s <= BACK_TO_BACK_S:
            self._busy.append(batch)
        self._last_end_s = now
        self._forget(now)
        self._running, self._proven = None, True
        return now - begin

    @property
    def running_cost(self) -> int:
        """Cost of the batch that runs, 0 when idle."""
        return self._running[1] if self._running else 0

    def cost_per_s(self) -> float:
        """Return the cost done per second under load, over the last seconds; 0 if not known.

        Only batches that follow on another count: a lone query says nothing of the capacity.
        """
        self._forget(self._clock())
        busy_s = sum(seconds for _, seconds, _ in self._busy)
        return sum(cost for _, _, cost in self._busy) / busy_s if busy_s > 0 else 0.0

    def check(self) -> None:
        """Raise RuntimeError if the running batch takes far longer than others did."""
        if self._running is None:
            return
        begin, cost = self._running
        elapsed_s, limit_s = self._clock() - begin, self._limit_s(cost)
        if elapsed_s > limit_s:
            raise RuntimeError(
                f"a batch of cost {cost} has been running for {elapsed_s:.0f} s; the device made "
                f"no progress within {limit_s:.0f} s"
            )

    def _limit_s(self, cost: int) -> float:
        if not self._proven:
            return FIRST_BATCH_S
        pace = max((seconds / done for _, seconds, done in self._batches), default=0.0)
        return max(LEAST_S, PATIENCE * pace * cost) if pace else FIRST_BATCH_S

    def _forget(self, now: float) -> None:
        for batches in (self._batches, self._busy):
            while batches and batches[0][0] < now - WINDOW_S:
                batches.popleft()
