"""Small calls run beside a large batch, on a device that can do both at once."""

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from deployments.engine.batcher import AfterBatch, Batcher
from deployments.engine.call import Call
from deployments.engine.device import Device
from deployments.messages import Lane

T = TypeVar("T")
R = TypeVar("R")


class ExpressBatcher(Generic[T, R]):
    """A batcher, and a second one for small interactive calls while the first is busy.

    On a CPU a query would wait for the batch that runs, tens of milliseconds; but a CPU can share
    itself out between the two. A GPU runs one batch after the other in less time than that.

    Args:
        regular: takes all that the other does not.
        express: takes a call while `regular` runs a batch dearer than this one's budget, as long as
            all its calls fit into that budget; the device stays the regular batcher's for the most
            part. None where the device runs one batch at a time.
    """

    def __init__(self, regular: Batcher[T, R], express: Batcher[T, R] | None = None) -> None:
        self.regular = regular
        self._express = express

    @classmethod
    def on(
        cls,
        device: Device,
        forward: Callable[[list[T]], Sequence[R | Exception]],
        max_cost: int,
        max_items: int,
        after_batch: AfterBatch,
    ) -> "ExpressBatcher[T, R]":
        """Run batches with `forward` on a device; for the budgets see `Batcher`."""

        def regular(items: list[T]) -> Awaitable[Sequence[R | Exception]]:
            return device.run(forward, items)

        def express(items: list[T]) -> Awaitable[Sequence[R | Exception]]:
            return device.run_express(forward, items)

        cost, small = device.batch_cost(max_cost), device.express_cost()
        return cls(
            Batcher(regular, cost, max_items, after_batch=after_batch),
            Batcher(express, small, max_items, after_batch=after_batch) if small else None,
        )

    @property
    def outstanding_cost(self) -> int:
        """Cost of what waits and of what runs."""
        return sum(batcher.outstanding_cost for batcher in self._batchers())

    async def submit(
        self,
        items: Sequence[T],
        costs: Sequence[int],
        lane: Lane = "interactive",
        timeout_s: float = math.inf,
    ) -> Call[R]:
        """Run items with the batcher that has them done sooner; see `Batcher.submit`."""
        batcher = self._choose(sum(costs), lane)
        return await batcher.submit(items, costs, lane, timeout_s)

    def check_health(self) -> None:
        """Raise RuntimeError if a worker has died or the device makes no progress."""
        for batcher in self._batchers():
            batcher.check_health()

    def _batchers(self) -> list[Batcher[T, R]]:
        return [self.regular] if self._express is None else [self.regular, self._express]

    def _choose(self, cost: int, lane: Lane) -> Batcher[T, R]:
        express = self._express
        if express is None or lane != "interactive":
            return self.regular
        budget = express.queue.max_cost
        has_room = express.outstanding_cost + cost <= budget
        return express if has_room and self.regular.watchdog.running_cost > budget else self.regular
