"""Batches waiting items for one device; pure asyncio, used by both towers and by bulk jobs.

A batch is chosen when the device is free, not before, so that batches grow while it is busy and
nothing waits while it is idle. A GPU is handed the next one shortly before: what the host does for
it then costs the device no time. Every item ends exactly once: with a result, an error of its own,
or dropped because its caller has gone.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from deployments.engine.call import Call, QueuedItem
from deployments.engine.queue import WorkQueue, cost_of
from deployments.engine.watchdog import Watchdog
from deployments.errors import DeadlineError, RequestTooLargeError, TowerUnavailableError
from deployments.messages import Lane, Terms

T = TypeVar("T")
R = TypeVar("R")
Run = Callable[[list[T]], Awaitable[Sequence[R | Exception]]]
AfterBatch = Callable[[int, int, int, float], None]
"""Told the items, the cost, the budget and the seconds of a batch that has run."""

GROW_AFTER = 100  # batches without lack of memory, before a halved budget is doubled

logger = logging.getLogger("ray.serve")


class Batcher(Generic[T, R]):
    """Runs items in batches within a cost budget.

    Args:
        run: gives one result for each item of a batch, in order. An exception fails the batch: it
            is run again in halves until the bad item is alone. A MemoryError also halves the
            budget, but not below half of what has run, until many batches have gone well. A
            TowerUnavailableError ends the batch at once.
        lead_s: tells how long before the end that is expected of a batch the next one is handed to
            `run`. There are two at most; None waits for the end.
        max_cost: budget of a batch, in the unit of the items' costs (tokens, images).
        max_items: most items in a batch.
        bulk_share: share of a batch that bulk work earns while interactive work waits too.
        after_batch: told of every batch that has run.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        run: Run[T, R],
        max_cost: int,
        max_items: int,
        bulk_share: float = 0.2,
        after_batch: AfterBatch | None = None,
        clock: Callable[[], float] = time.monotonic,
        lead_s: Callable[[], float] | None = None,
    ) -> None:
        self.queue: WorkQueue[T, R] = WorkQueue(max_cost, max_items, bulk_share)
        self.watchdog = Watchdog(clock)
        self.memory_halvings = 0
        self._most_cost = max_cost
        self._proven_cost = 0  # of the largest batch that has run
        self._batches_since_shrinking = 0
        self._clock = clock
        self._run = run
        self._after_batch = after_batch
        self._lead_s = lead_s
        self._wake = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    @property
    def outstanding_cost(self) -> int:
        """Cost of what waits and of what runs."""
        return self.queue.waiting_cost + self.watchdog.running_cost

    async def submit(
        self,
        items: Sequence[T],
        costs: Sequence[int],
        lane: Lane = "interactive",
        timeout_s: float = math.inf,
    ) -> Call[R]:
        """Queue items and wait for all their results, in order; an item's failure is a value.

        Cancelling it drops the items that the device has not begun.
        An item that would not be done within `timeout_s` may get a DeadlineError and not run.
        """
        call = self.enqueue(items, costs, lane, timeout_s)
        try:
            await call.done.wait()
        finally:
            self.drop(call)
        return call

    def enqueue(
        self,
        items: Sequence[T],
        costs: Sequence[int],
        lane: Lane = "interactive",
        timeout_s: float = math.inf,
    ) -> Call[R]:
        """Queue items and return at once; see `submit`. Who waits no more calls `drop`."""
        call: Call[R] = Call(len(items), sum(costs), lane, self._clock(), timeout_s)
        for index, (item, cost) in enumerate(zip(items, costs, strict=True)):
            call.queued.append(QueuedItem(item, cost, call, index))
            self.queue.push(call.queued[-1])
        if self._worker is None:
            self._worker = asyncio.create_task(self._work(), name="batcher")
        self._wake.set()
        return call

    def drop(self, call: Call[R]) -> None:
        """Forget the items of a call, those too that wait."""
        if not call.done.is_set():
            for entry in call.queued:
                self.queue.drop(entry)
        call.queued.clear()  # each names the call: they would outlive it

    def check_health(self) -> None:
        """Raise RuntimeError if the worker has died or the device makes no progress."""
        if self._worker is not None and self._worker.done():
            raise RuntimeError("the batcher's worker has stopped")
        self.watchdog.check()

    async def _work(self) -> None:
        running: asyncio.Task[None] | None = None
        while True:
            self._expire()
            batch = self.queue.take()
            if not batch:
                self._wake.clear()
                await self._wake.wait()
                continue
            if self._lead_s is None:
                await self._run_batch(batch)
                continue
            before, running = running, asyncio.create_task(self._run_batch(batch), name="batch")
            if before is not None:
                await before
            await self._nearly_done(running, cost_of(batch), self._lead_s())

    async def _nearly_done(self, running: "asyncio.Task[None]", cost: int, lead_s: float) -> None:
        """Return when a batch that has the device to itself has `lead_s` left, or has ended."""
        expected_s = self.watchdog.expected_s(cost)
        left_s = None if expected_s is None else max(expected_s - lead_s, 0)
        await asyncio.wait((running,), timeout=left_s)

    def _expire(self) -> None:
        """Refuse what waits too long to be done in time, at the pace of the last batches."""
        if self.queue.waiting_cost <= self.queue.max_cost:  # the pace is a sum over many batches
            return
        cost_per_s = self.watchdog.cost_per_s()
        if cost_per_s > 0:
            for entry in self.queue.expire(self._clock(), cost_per_s):
                late = DeadlineError("the device will not come to it in time; send less, or retry")
                entry.call.settle(entry.index, late)

    async def _run_batch(self, batch: list[QueuedItem[T, R]], is_again: bool = False) -> None:
        """Run a batch and settle each of its items; on an error, run its halves."""
        cost, calls = cost_of(batch), {entry.call for entry in batch}
        begun = self.watchdog.begin(cost)
        for call in calls:
            call.begin(self._clock())
        failure: Exception | None = None
        try:
            results = await self._run([entry.item for entry in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for a batch of {len(batch)}")
        except Exception as error:  # noqa: BLE001 - whatever it is, every item must end
            self.watchdog.end(begun, done=False)
            failure = error
        else:
            seconds = self.watchdog.end(begun)
            self._grow(cost)
            for call in calls:
                call.device_ms += 1e3 * seconds
            if self._after_batch is not None:
                self._after_batch(len(batch), cost, self.queue.max_cost, seconds)
            for entry, result in zip(batch, results, strict=True):
                entry.call.settle(entry.index, result)
        if failure is not None:
            await self._after_failure(batch, cost, failure, is_again)

    async def _after_failure(
        self, batch: list[QueuedItem[T, R]], cost: int, error: Exception, is_again: bool
    ) -> None:
        """Fail a lone item, or run the halves of a batch to find the bad one."""
        if isinstance(error, TowerUnavailableError):  # halves of it would fail the same way
            for entry in batch:
                entry.call.settle(entry.index, error)
            return
        if isinstance(error, MemoryError):
            self._shrink(cost)
            if len(batch) == 1 and not is_again:  # there may be room now
                await self._run_batch(batch, is_again=True)
                return
        if len(batch) == 1:
            logger.error("an item of cost %d failed alone", cost, exc_info=error)
            if isinstance(error, MemoryError):
                error = RequestTooLargeError(
                    f"the item (cost {cost:,}) does not fit into the device's memory; "
                    f"batches of {self.queue.max_cost:,} do"
                )
            (entry,) = batch
            entry.call.settle(entry.index, error)
            return
        logger.warning("a batch of %d failed (%r); running its halves", len(batch), error)
        middle = len(batch) // 2
        await self._run_batch(batch[:middle])
        await self._run_batch(batch[middle:])

    def _shrink(self, cost: int) -> None:
        """Remember a budget that is half of what did not fit, or of what has run."""
        smaller = max(1, cost // 2, self._proven_cost // 2)
        if smaller < self.queue.max_cost:
            logger.warning("out of device memory at cost %d; budget now %d", cost, smaller)
            self.queue.max_cost = smaller
            self.memory_halvings += 1
        self._batches_since_shrinking = 0

    def _grow(self, cost: int) -> None:
        """Note that a batch has run; after many, double a budget that was halved."""
        self._proven_cost = max(self._proven_cost, cost)
        self._batches_since_shrinking += 1
        if self.queue.max_cost < self._most_cost and self._batches_since_shrinking >= GROW_AFTER:
            self.queue.max_cost = min(self._most_cost, 2 * self.queue.max_cost)
            self._batches_since_shrinking = 0


async def within(terms: Terms, results: Awaitable[R], left_s: float = math.inf) -> R:
    """Wait for results no longer than the caller does, of whose time so much may be left.

    Raises:
        DeadlineError: the time ran out; what has not begun is dropped.
    """
    try:
        async with asyncio.timeout(min(left_s, terms.timeout_s)):
            return await results
    except TimeoutError:
        raise DeadlineError(f"not done within {terms.timeout_s:.1f} s") from None
