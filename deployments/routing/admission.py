"""Who is let in: budgets of outstanding tokens, images and bytes, and when to come back.

A budget counts work from admission to answer. Over it the Router refuses at once, with the time in
which the work now outstanding will have drained at the rate measured over the last seconds.
Pure: the clock is an argument.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deployments.errors import OverloadedError, RequestTooLargeError
from deployments.messages import Lane

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
    """Outstanding work of one kind, bounded; bulk work may hold a share of it at most.

    Args:
        unit: what is counted, for messages: `tokens`, `images` or `bytes of memory`.
        limit: most units outstanding at once.
        bulk_share: the part of the limit that the lane `bulk` may hold.
        clock: monotonic seconds.

    Attributes:
        arrived_total: units of work that was there, in `Hold.arrive`, or was refused.
    """

    def __init__(
        self,
        unit: str,
        limit: int,
        bulk_share: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.arrived_total = 0
        self._limits: dict[Lane, int] = {"interactive": limit, "bulk": int(limit * bulk_share)}
        self._held: dict[Lane, int] = {"interactive": 0, "bulk": 0}
        self._unit = unit
        self._rate = DrainRate(clock)

    @property
    def outstanding(self) -> int:
        """What both lanes hold."""
        return sum(self._held.values())

    def limit(self, lane: Lane) -> int:
        """Return the most that a request of a lane may hold."""
        return self._limits[lane]

    @contextmanager
    def hold(self, lane: Lane) -> "Iterator[Hold]":
        """Yield what a request holds, nothing at first; all of it is free after the block."""
        hold = Hold(self, lane)
        try:
            yield hold
            hold.done(hold.units)
        finally:  # work that was given up says nothing of the pace
            hold.close()

    def admit(self, cost: int, lane: Lane, held: int = 0) -> None:
        """Take `cost` units of the budget.

        Args:
            cost: units to take.
            lane: of the request that they are for.
            held: what that request holds before.

        Raises:
            RequestTooLargeError: more than the lane may ever hold.
            OverloadedError: the budget is used up; says when to come back. Such work has arrived:
                the towers are scaled for it.
        """
        limit = self._limits[lane]
        if held + cost > limit:
            raise RequestTooLargeError(
                f"the request needs {held + cost:,} {self._unit}; the server takes {limit:,} at "
                f"once{' in the lane bulk' if lane == 'bulk' else ''}: split it"
            )
        for used, most in (
            (self.outstanding, self._limits["interactive"]),
            (self._held[lane], limit),
        ):
            if used + cost > most:
                self.arrived_total += cost
                retry_s = self.drain_s(used)
                raise OverloadedError(
                    f"{used:,} {self._unit} are outstanding and the limit is {most:,}; retry in "
                    f"{retry_s:.1f} s",
                    retry_s,
                )
        if self.outstanding == 0 and cost:
            self._rate.started()
        self._held[lane] += cost

    def release(self, cost: int, lane: Lane) -> None:
        """Give back units of work that is done."""
        if cost:
            self.give_back(cost, lane)
            self._rate.finished(cost)

    def give_back(self, cost: int, lane: Lane) -> None:
        """Give back units that no work was done for; they say nothing of the pace."""
        self._held[lane] -= cost

    def drain_s(self, units: int) -> float:
        """Return the seconds in which outstanding work is done at the present rate."""
        rate = self._rate.per_s()
        return units / rate if rate > 0 else UNKNOWN_DRAIN_S


class Hold:
    """What one request holds of a budget; see `Budget.hold`.

    Attributes:
        units: held now.
    """

    def __init__(self, budget: Budget, lane: Lane) -> None:
        self.units = 0
        self._budget = budget
        self._lane = lane
        self._closed = False

    @property
    def most(self) -> int:
        """The most that it may ever hold."""
        return self._budget.limit(self._lane)

    def arrive(self, units: int) -> None:
        """Hold so many units from now on, for work that is there: it has arrived.

        Raises:
            RequestTooLargeError, OverloadedError: see `Budget.admit`; it holds what it held.
        """
        self.resize(units)
        self._budget.arrived_total += units

    def resize(self, units: int) -> None:
        """Hold so many units from now on, for work that may come to nothing.

        Raises:
            RequestTooLargeError, OverloadedError: see `Budget.admit`; it holds what it held.
        """
        if self._closed:
            raise ValueError("the request has ended")
        if units > self.units:
            self._budget.admit(units - self.units, self._lane, self.units)
        else:
            self._budget.give_back(self.units - units, self._lane)
        self.units = units

    def move(self, lane: Lane) -> None:
        """Hold the same in a lane that became known.

        Raises:
            RequestTooLargeError, OverloadedError: see `Budget.admit`; it holds nothing.
        """
        if lane == self._lane:
            return
        units = self.units
        self.resize(0)
        self._lane = lane
        self.resize(units)

    def done(self, units: int) -> None:
        """Give back units whose work is done."""
        self.units -= units
        self._budget.release(units, self._lane)

    def close(self) -> None:
        """Give back what is left, and take no more: a thread may still read for this request."""
        self.resize(0)
        self._closed = True
