"""How fast a device works, and whether it still does. Pure: the clock is an argument."""

import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 30.0
FIRST_BATCH_S = 120.0  # before any batch has ended: compilation and cold caches
LEAST_S = 5.0
PATIENCE = 20.0  # times the slowest pace seen of late
BACK_TO_BACK_S = 0.005  # between two batches of which the second had been waiting
LATEST_SHARE = 0.25  # of the latest batch in the mean pace of its size


Batch = tuple[float, int]  # begin, cost


class Watchdog:
    """Watches one device, which runs batches one after the other.

    The next may begin while one runs: it is being prepared then, or waits for the device.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._batches: deque[tuple[float, float, int]] = deque()  # end, seconds, cost
        self._busy: deque[tuple[float, float, int]] = deque()  # those that followed on another
        self._pace: dict[int, float] = {}  # seconds per cost, by power of 2 of a batch's cost
        self._last_end_s = -WINDOW_S
        self._running: list[Batch] = []
        self._proven = False

    def begin(self, cost: int) -> Batch:
        """Note that a batch of this cost starts."""
        batch = (self._clock(), cost)
        self._running.append(batch)
        return batch

    def end(self, batch: Batch, done: bool = True) -> float:
        """Note that a batch is over; returns the seconds for which the device had it.

        One that failed says nothing of the pace.
        """
        self._running.remove(batch)
        now, (begin, cost) = self._clock(), batch
        seconds = now - max(begin, self._last_end_s)
        if done:
            ended = (now, seconds, cost)
            self._batches.append(ended)
            size, pace = cost.bit_length(), seconds / max(cost, 1)
            mean = self._pace.setdefault(size, pace)
            self._pace[size] = mean + LATEST_SHARE * (pace - mean)
            if begin - self._last_end_s <= BACK_TO_BACK_S:
                self._busy.append(ended)
            self._proven = True
        self._last_end_s = now
        self._forget(now)
        return seconds

    @property
    def running_cost(self) -> int:
        """Cost of the batches that run, 0 when idle."""
        return sum(cost for _, cost in self._running)

    def cost_per_s(self) -> float:
        """Return the cost done per second under load, over the last seconds; 0 if not known.

        Only batches that follow on another count: a lone query says nothing of the capacity.
        """
        self._forget(self._clock())
        busy_s = sum(seconds for _, seconds, _ in self._busy)
        return sum(cost for _, _, cost in self._busy) / busy_s if busy_s > 0 else 0.0

    def expected_s(self, cost: int) -> float | None:
        """Return how long the device takes for a batch, from the last of its size, if any.

        Gaps between batches do not count: with them, a device that is handed its batches late
        would seem slow, and be handed the next ones later still.
        """
        pace = self._pace.get(cost.bit_length())
        return None if pace is None else pace * cost

    def check(self) -> None:
        """Raise RuntimeError if the running batch takes far longer than others did."""
        if not self._running:
            return
        begin, cost = self._running[0]
        elapsed_s, limit_s = self._clock() - max(begin, self._last_end_s), self._limit_s(cost)
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
