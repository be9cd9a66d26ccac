"""Who is let in: budgets of outstanding work in tokens and in images, and when to come back.

A budget counts work from admission to answer. Over it the Router refuses at once, with the time in
which the work now outstanding will have drained at the rate measured over the last seconds.
Pure: the clock is an argument.
"""

import time
from collections import deque
from collections.abc import Callable

from deployments.errors import OverloadedError, RequestTooLargeError

WINDOW_S = 10.0
UNKNOWN_DRAIN_S = 1.0  # asked for before any work has ever been finished


class DrainRate:
    """Work finished per second, over the busy part of the last seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._finished: deque[tuple[float, int]] = deque()
        self._last_rate = 0.0

    def started(self) -> None:
        """Note that work comes after idleness: what was finished before it says nothing now."""
        self._last_rate = self.per_s()
        self._finished.clear()

    def finished(self, cost: int) -> None:
        """Note that work is done."""
        self._finished.append((self._clock(), cost))
        self._forget()

    def per_s(self) -> float:
        """Return cost units per second; the last rate known where there is too little to tell.

        Measured from the first to the last piece of the window: the time before the first is the
        latency of an idle service, not its pace.
        """
        self._forget()
        if len(self._finished) < 2:
            return self._last_rate
        (first_s, first), (last_s, _) = self._finished[0], self._finished[-1]
        done = sum(cost for _, cost in self._finished) - first
        return done / (last_s - first_s) if last_s > first_s else self._last_rate

    def _forget(self) -> None:
        while len(self._finished) > 2 and self._finished[0][0] < self._clock() - WINDOW_S:
            self._finished.popleft()


class Budget:
    """Outstanding work of one modality, bounded.

    Args:
        unit: what is counted, for messages: `tokens` or `images`.
        limit: most units outstanding at once.
        clock: monotonic seconds.
    """

    def __init__(self, unit: str, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self.outstanding = 0
        self.arrived_total = 0
        self._unit = unit
        self._rate = DrainRate(clock)

    def admit(self, cost: int) -> None:
        """Take `cost` units of the budget, to be released once the work is done or given up.

        Raises:
            RequestTooLargeError: more than the whole budget.
            OverloadedError: the budget is used up; says when to come back.
        """
        if cost > self.limit:
            raise RequestTooLargeError(
                f"the request has {cost:,} {self._unit}; the server takes {self.limit:,} at once: "
                "split it"
            )
        self.arrived_total += cost
        if self.outstanding + cost > self.limit:
            drain_s = self.drain_s()
            raise OverloadedError(
                f"{self.outstanding:,} {self._unit} are outstanding and the limit is "
                f"{self.limit:,}; retry in {drain_s:.1f} s",
                drain_s,
            )
        if self.outstanding == 0 and cost:
            self._rate.started()
        self.outstanding += cost

    def release(self, cost: int) -> None:
        """Give back units of work that is no longer outstanding."""
        if cost:
            self.outstanding -= cost
            self._rate.finished(cost)

    def drain_s(self) -> float:
        """Return the seconds in which the outstanding work is done at the present rate."""
        rate = self._rate.per_s()
        return self.outstanding / rate if rate > 0 else UNKNOWN_DRAIN_S
