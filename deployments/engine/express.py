"""Small calls run beside a large batch, on a CPU only.

There a query would wait for the batch that runs, tens of milliseconds; but a CPU can share itself
out between the two. A GPU runs one batch after the other in less time than that, and its engine has
neither this batcher nor its thread.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

from deployments.engine.batcher import AfterBatch, Batcher, Run
from deployments.engine.call import Call
from deployments.messages import Lane

T = TypeVar("T")
R = TypeVar("R")


class ExpressBatcher(Batcher[T, R]):
    """A batcher that gives small interactive calls to a second one while it is busy itself.

    A call goes there while a batch runs here that is dearer than the second one's budget, as long
    as all its calls fit into that budget: most of the CPU stays with the large batch.

    Args:
        run_beside: as `run`, beside what `run` does.
        max_cost_beside: budget of the second batcher.
    """

    def __init__(
        self,
        run: Run[T, R],
        run_beside: Run[T, R],
        max_cost: int,
        max_cost_beside: int,
        max_items: int,
        after_batch: AfterBatch | None = None,
    ) -> None:
        super().__init__(run, max_cost, max_items, after_batch=after_batch)
        self._beside: Batcher[T, R] = Batcher(
            run_beside, max_cost_beside, max_items, after_batch=after_batch
        )

    def enqueue(
        self,
        items: Sequence[T],
        costs: Sequence[int],
        lane: Lane = "interactive",
        timeout_s: float = math.inf,
    ) -> Call[R]:
        """Queue items with the batcher that has them done sooner; see `Batcher.enqueue`."""
        budget = self._beside.queue.max_cost
        fits = self._beside.outstanding_cost + sum(costs) <= budget
        if lane == "interactive" and fits and self.watchdog.running_cost > budget:
            return self._beside.enqueue(items, costs, lane, timeout_s)
        return super().enqueue(items, costs, lane, timeout_s)

    def drop(self, call: Call[R]) -> None:
        """Forget the items of a call, whichever batcher has them."""
        if not call.done.is_set():
            for entry in call.queued:
                self._beside.queue.drop(entry)
        super().drop(call)

    def check_health(self) -> None:
        """Raise RuntimeError if a worker has died or the device makes no progress."""
        super().check_health()
        self._beside.check_health()
