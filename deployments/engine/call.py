"""A call to a tower, and its items on their way through the engine."""

import asyncio
import math
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from deployments.messages import Lane

T = TypeVar("T")
R = TypeVar("R")


class Call(Generic[R]):
    """What the items of one call have in common, and what became of them.

    Args:
        items: their number.
        cost: of all of them.
        now_s: when the call came in.
        timeout_s: nobody waits for the results after that.

    Attributes:
        results: for each item its result or what went wrong; complete once `done` is set.
        queue_ms: from the call to the first batch with an item of it.
        device_ms: of all batches with an item of it.
        queued: its items, until nobody waits for it.
    """

    def __init__(
        self,
        items: int = 1,
        cost: int = 0,
        lane: Lane = "interactive",
        now_s: float = 0.0,
        timeout_s: float = math.inf,
    ) -> None:
        self.cost = cost
        self.lane = lane
        self.expires_s = now_s + timeout_s
        self.results: list[R | Exception] = [RuntimeError("not done yet")] * items
        self.queue_ms = 0.0
        self.device_ms = 0.0
        self.queued: list[QueuedItem[Any, R]] = []
        self.done = asyncio.Event()
        if not items:
            self.done.set()
        self._items_left = items
        self._waits_since_s: float | None = now_s

    def begin(self, now_s: float) -> None:
        """Note that the first of its items is on the device."""
        if self._waits_since_s is not None:
            self.queue_ms = 1e3 * (now_s - self._waits_since_s)
            self._waits_since_s = None

    def settle(self, index: int, result: R | Exception) -> None:
        """Record the result of one item; the call is done with the last one."""
        self.results[index] = result
        self._items_left -= 1
        if self._items_left == 0:
            self.done.set()


@dataclass(eq=False, slots=True)
class QueuedItem(Generic[T, R]):
    """One item that waits or runs; `index` is its place in the call."""

    item: T
    cost: int
    call: Call[R]
    index: int = 0
