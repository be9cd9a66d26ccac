"""The engine of one tower: its device, batcher, watchdog, self-check and metrics.

Used by both tower deployments and by bulk jobs; it knows neither Ray nor where its items come from.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from deployments.config import AppConfig
from deployments.engine.batcher import Batcher, within
from deployments.engine.call import Call
from deployments.engine.device import Device
from deployments.engine.express import ExpressBatcher
from deployments.engine.inputs import Inputs
from deployments.engine.start import start
from deployments.errors import DeadlineError, ServiceError
from deployments.messages import ImageChunk, Lane, TextChunk, TowerRows
from deployments.model.errors import EmbeddingError
from deployments.model.output import Row, Rows

if TYPE_CHECKING:
    from deployments.metrics import TowerMetrics

C = TypeVar("C", bound=TextChunk | ImageChunk)
T = TypeVar("T")
A = TypeVar("A")
Results = list[Row | Exception]

# The next batch is handed over so many launches before the one that runs ends, at most so early.
# It was measured together with the graphs of large batches, not by itself.
LEAD_LAUNCHES = 1.5
MOST_LEAD_S = 0.05

logger = logging.getLogger("ray.serve")


class TowerEngine(Generic[C, T]):
    """Runs one tower: chunks or single items in, un-normalised rows out.

    Args:
        config: the model and its budgets.
        inputs: what the tower takes.
        metrics: told of every batch.
        replica: name in the answers.
        for_bulk: nobody waits for a single item, so that a CPU too runs batches of the full budget,
            and nothing beside them.

    Attributes:
        model: decoding is safe from any thread, all else is for the device's thread.
        outstanding: tokens or images of the chunks under way.

    Raises:
        RuntimeError: the tower does not give the rows that it has to.
    """

    def __init__(
        self,
        config: AppConfig,
        inputs: Inputs[C, T],
        metrics: "TowerMetrics | None" = None,
        replica: str = "",
        for_bulk: bool = False,
    ) -> None:
        self.outstanding = 0
        self._inputs = inputs
        self._metrics = metrics
        self._replica = replica
        self._nonfinite_rows = 0
        self._device = Device(config.model.device)
        self.model, self.self_check = self._device.submit(start, config, inputs).result()
        self._batcher = self._make_batcher(for_bulk)

    @property
    def fingerprint(self) -> str:
        """What the rows depend on besides the items."""
        return self.model.fingerprint

    @property
    def cost_per_s(self) -> float:
        """Tokens or images per second under load, over the last seconds; 0 if not known."""
        return self._batcher.watchdog.cost_per_s()

    async def answer(self, chunks: Sequence[C]) -> tuple[TowerRows | EmbeddingError, ...]:
        """Return the rows of each chunk of a call; a chunk's failure is its own."""
        items = [self._inputs.items(chunk) for chunk in chunks]
        if None in items:
            return await answer_each(self.embed, chunks)
        with ExitStack() as held:  # no task for each: only the device is waited for
            pairs = zip(chunks, items, strict=True)
            calls = [self._enqueued(chunk, each or [], held) for chunk, each in pairs]
            return tuple([await self._answered(*each) for each in zip(chunks, calls, strict=True)])

    def _enqueued(self, chunk: C, items: list[T], held: ExitStack) -> Call[Row]:
        """Queue the items of a chunk; they are forgotten when `held` ends."""
        costs, terms = self._inputs.costs(chunk), chunk.terms
        held.enter_context(self._counted(sum(costs)))
        call = self._batcher.enqueue(items, costs, terms.lane, terms.timeout_s)
        held.callback(self._batcher.drop, call)
        return call

    async def _answered(self, chunk: C, call: Call[Row]) -> TowerRows | EmbeddingError:
        if not call.done.is_set():
            left_s = max(0.0, call.expires_s - time.monotonic())
            try:
                await within(chunk.terms, call.done.wait(), left_s)
            except DeadlineError as error:
                self._batcher.drop(call)
                return error
        return self._rows(call.results, call)

    def _rows(self, results: Results, call: Call[Row]) -> TowerRows:
        made_by = self._replica, self.fingerprint
        return TowerRows.of(results, self.model.width, call.queue_ms, call.device_ms, *made_by)

    async def embed(self, chunk: C) -> TowerRows:
        """Return the rows of a chunk; an item that cannot be prepared fails alone.

        Raises:
            DeadlineError: the time that its terms allow has run out.
        """
        costs = self._inputs.costs(chunk)
        with self._counted(sum(costs)):
            results, call = await within(chunk.terms, self._prepare_and_run(chunk, costs))
        return self._rows(results, call)

    async def run(
        self,
        items: Sequence[T],
        costs: Sequence[int],
        lane: Lane = "interactive",
        timeout_s: float = math.inf,
    ) -> Call[Row]:
        """Run prepared items in batches; see `Batcher.submit`."""
        return await self._batcher.submit(items, costs, lane, timeout_s)

    def check_health(self) -> None:
        """Raise RuntimeError when the device is lost, stuck or wrong."""
        try:
            self._device.check_health()
            self.self_check.poll(self._device.submit)
            if not self.self_check.is_running:  # a batch may wait for it, which is not stuck
                self._batcher.check_health()
        finally:  # the metrics tell why
            self._sample()

    async def _prepare_and_run(self, chunk: C, costs: list[int]) -> tuple[Results, Call[Row]]:
        arrived_s, terms = time.monotonic(), chunk.terms
        async with self._inputs.prepare(self.model, chunk) as (items, failures):
            costs = [cost for index, cost in enumerate(costs) if index not in failures]
            left_s = terms.timeout_s - (time.monotonic() - arrived_s)
            call = await self.run(items, costs, terms.lane, left_s)
        rows = iter(call.results)
        number = len(items) + len(failures)
        return [failures[i] if i in failures else next(rows) for i in range(number)], call

    def _make_batcher(self, for_bulk: bool) -> Batcher[T, Row]:
        inputs, device = self._inputs, self._device
        after_batch = None if self._metrics is None else self._metrics.after_batch

        async def run(items: list[T]) -> Results:
            return self._count(await device.run_launched(partial(self._launch, items)))

        if for_bulk or not device.is_cpu:
            lead_s = None if device.is_cpu else self._lead_s
            cost = inputs.max_cost if for_bulk else self.model.timely[inputs.tower]
            return Batcher(run, cost, inputs.max_items, after_batch=after_batch, lead_s=lead_s)
        cost = min(inputs.max_cost, inputs.cpu_cost)
        if self.model.choices["implementation"] != "native":
            # Whether third-party towers bear two batches at once is not known.
            return Batcher(run, cost, inputs.max_items, after_batch=after_batch)
        thread = ThreadPoolExecutor(1, "express")

        async def run_beside(items: list[T]) -> Results:
            running = device.submit_to(thread, self._launch_and_wait, items)
            return self._count(await asyncio.wrap_future(running))

        limits = cost, inputs.cpu_cost_beside, inputs.max_items
        return ExpressBatcher(run, run_beside, *limits, after_batch=after_batch)

    def _lead_s(self) -> float:
        """Return how long before a batch ends the next one has to be handed over to follow it."""
        return min(LEAD_LAUNCHES * self._device.launch_s, MOST_LEAD_S)

    def _launch(self, items: list[T]) -> Callable[[], Results]:
        """Queue a batch; returns what waits for its results."""
        pending = self._inputs.launch(self.model, items)
        return lambda: finite(pending.rows())

    def _launch_and_wait(self, items: list[T]) -> Results:
        return self._launch(items)()

    def _count(self, results: Results) -> Results:
        """Count the rows that are not finite."""
        self._nonfinite_rows += sum(isinstance(result, Exception) for result in results)
        return results

    def _sample(self) -> None:
        if self._metrics is not None:
            self._metrics.sample(
                budget=self._batcher.queue.max_cost,
                queued=self.outstanding,
                memory_halvings=self._batcher.memory_halvings,
                nonfinite_rows=self._nonfinite_rows,
                cosine=self.self_check.cosine,
            )

    @contextmanager
    def _counted(self, cost: int) -> Iterator[None]:
        """Count a chunk as outstanding for the length of the block."""
        self.outstanding += cost
        try:
            yield
        finally:
            self.outstanding -= cost


def finite(rows: Rows) -> Results:
    """Return each row, or an error in the place of one with NaN or infinity."""
    results: Results = list(rows)
    for index in np.flatnonzero(~np.isfinite(rows).all(axis=1)):
        logger.error("a row is not finite; the item fails")
        results[index] = ServiceError("the model gives no finite vector for this item")
    return results


async def answer_each(
    embed: Callable[[C], Awaitable[A]], chunks: Sequence[C]
) -> tuple[A | EmbeddingError, ...]:
    """Answer the chunks of one call; a chunk's failure is its own."""
    answers = await asyncio.gather(*map(embed, chunks), return_exceptions=True)
    return tuple(expected(x) if isinstance(x, BaseException) else x for x in answers)


def expected(error: BaseException) -> EmbeddingError:
    """Return an error as callers may see it; one that is not ours is logged."""
    if isinstance(error, EmbeddingError):
        return error
    logger.error("a chunk failed", exc_info=error)
    return ServiceError(f"the tower failed: {type(error).__name__}")
