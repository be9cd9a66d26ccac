"""Batches waiting items for one device; pure asyncio, used by both towers and by bulk jobs.

A batch is chosen when the device is free, not before, so that batches grow while it is busy and
nothing waits while it is idle. Every item ends exactly once: with a result, an error of its own, or
dropped because its caller has gone.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from deployments.engine.queue import Entry, WorkQueue
from deployments.engine.watchdog import Progress
from deployments.errors import DeadlineError, RequestTooLargeError
from deployments.messages import Lane, Terms

T = TypeVar("T")
R = TypeVar("R")

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class Ran:
    """A batch that the device has run."""

    items: int
    cost: int
    budget: int
    seconds: float


@dataclass(slots=True)
class Times:
    """Where the time of a call went, in milliseconds."""

    queue_ms: float = 0.0
    device_ms: float = 0.0


class Job(Generic[T, R]):
    """The items of one call, and the results as they come."""

    def __init__(self, size: int, times: Times, now_s: float) -> None:
        self.times = times
        self._waits_since_s: float | None = now_s
        self.results: list[R | Exception | None] = [None] * size
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._left = size

    def begin(self, now_s: float) -> None:
        """Note that the first of its items is on the device."""
        if self._waits_since_s is not None:
            self.times.queue_ms = 1e3 * (now_s - self._waits_since_s)
            self._waits_since_s = None

    def settle(self, index: int, result: R | Exception) -> None:
        """Record the result of one item; the call returns with its last one."""
        self.results[index] = result
        self._left -= 1
        if self._left == 0 and not self.done.done():
            self.done.set_result(None)


class Place(Generic[T, R]):
    """One item of a job on its way through the queue."""

    __slots__ = ("index", "item", "job")

    def __init__(self, job: Job[T, R], index: int, item: T) -> None:
        self.job, self.index, self.item = job, index, item


class Batcher(Generic[T, R]):
    """Runs items in batches within a cost budget, one batch at a time.

    Args:
        run: gives one result for each item of a batch, in order; called for one batch at a time.
            An exception fails the batch: it is run again in halves until the bad item is alone.
            A MemoryError also halves the budget, for good.
        max_cost: budget of a batch, in the unit of the items' costs (tokens, images).
        max_items: most items in a batch.
        bulk_share: share of a batch that bulk work earns while interactive work waits too.
        after_batch: told of every batch that has run.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        run: Callable[[list[T]], Awaitable[Sequence[R | Exception]]],
        max_cost: int,
        max_items: int,
        bulk_share: float = 0.2,
        after_batch: Callable[[Ran], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.queue: WorkQueue[Place[T, R]] = WorkQueue(max_cost, max_items, bulk_share)
        self.progress = Progress(clock)
        self.memory_halvings = 0
        self._clock = clock
        self._run = run
        self._after_batch = after_batch
        self._wake = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    @property
    def outstanding_cost(self) -> int:
        """Cost of what waits and of what runs."""
        return self.queue.waiting_cost + self.progress.running_cost

    async def submit(
        self,
        items: Sequence[T],
        costs: Sequence[int],
        lane: Lane = "interactive",
        times: Times | None = None,
        timeout_s: float = math.inf,
    ) -> list[R | Exception]:
        """Queue items and wait for all their results, in order; an item's failure is a value.

        Cancelling the call drops the items that the device has not begun. `times` is filled in.
        An item that would not be done within `timeout_s` may get a DeadlineError and not run.
        """
        if not items:
            return []
        now_s, call_cost = self._clock(), sum(costs)
        job: Job[T, R] = Job(len(items), times or Times(), now_s)
        entries = [
            self.queue.push(Place(job, index, item), cost, lane, call_cost, now_s + timeout_s)
            for index, (item, cost) in enumerate(zip(items, costs, strict=True))
        ]
        if self._worker is None:
            self._worker = asyncio.create_task(self._work(), name="batcher")
        self._wake.set()
        try:
            await job.done
        except asyncio.CancelledError:
            for entry in entries:
                self.queue.drop(entry)
            raise
        return [result for result in job.results if result is not None]

    def check_health(self) -> None:
        """Raise RuntimeError if the worker has died or the device makes no progress."""
        if self._worker is not None and self._worker.done():
            raise RuntimeError("the batcher's worker has stopped")
        self.progress.check()

    async def _work(self) -> None:
        while True:
            self._expire()
            batch = self.queue.take()
            if not batch:
                self._wake.clear()
                await self._wake.wait()
                continue
            await self._run_batch(batch)

    def _expire(self) -> None:
        """Refuse what waits too long to be done in time, at the pace of the last batches."""
        pace = self.progress.per_s()
        if pace > 0:
            for entry in self.queue.expire(self._clock(), pace):
                late = DeadlineError("the device will not come to it in time; send less, or retry")
                entry.payload.job.settle(entry.payload.index, late)

    async def _run_batch(self, batch: list[Entry[Place[T, R]]]) -> None:
        """Run a batch and settle each of its items; on an error, run its halves."""
        places = [entry.payload for entry in batch]
        cost = sum(entry.cost for entry in batch)
        self.progress.begin(cost)
        jobs = {place.job for place in places}
        for job in jobs:
            job.begin(self._clock())
        try:
            results = await self._run([place.item for place in places])
            if len(results) != len(places):
                raise RuntimeError(f"{len(results)} results for a batch of {len(places)}")
        except Exception as error:  # noqa: BLE001 - whatever it is, every item must end
            self.progress.end()
            await self._after_failure(batch, cost, error)
        else:
            seconds = self.progress.end()
            for job in jobs:
                job.times.device_ms += 1e3 * seconds
            if self._after_batch is not None:
                self._after_batch(Ran(len(batch), cost, self.queue.max_cost, seconds))
            for place, result in zip(places, results, strict=True):
                place.job.settle(place.index, result)

    async def _after_failure(
        self, batch: list[Entry[Place[T, R]]], cost: int, error: Exception
    ) -> None:
        """Fail a lone item, or run the halves of a batch to find the bad one."""
        if isinstance(error, MemoryError):
            self._shrink(cost)
        if len(batch) == 1:
            logger.error("an item of cost %d failed alone", cost, exc_info=error)
            if isinstance(error, MemoryError):
                error = RequestTooLargeError(
                    f"the item (cost {cost:,}) does not fit into the device's memory; "
                    f"batches of {self.queue.max_cost:,} do"
                )
            place = batch[0].payload
            place.job.settle(place.index, error)
            return
        logger.warning("a batch of %d failed (%r); running its halves", len(batch), error)
        middle = len(batch) // 2
        await self._run_batch(batch[:middle])
        await self._run_batch(batch[middle:])

    def _shrink(self, cost: int) -> None:
        """Remember a budget that is half of what did not fit."""
        smaller = max(1, cost // 2)
        if smaller < self.queue.max_cost:
            logger.warning("out of device memory at cost %d; budget now %d", cost, smaller)
            self.queue.max_cost = smaller
            self.memory_halvings += 1


async def within(terms: Terms, results: Awaitable[R]) -> R:
    """Wait for results no longer than the caller does.

    Raises:
        DeadlineError: the time ran out; what has not begun is dropped.
    """
    try:
        async with asyncio.timeout(terms.timeout_s):
            return await results
    except TimeoutError:
        raise DeadlineError(f"not done within {terms.timeout_s:.1f} s") from None
