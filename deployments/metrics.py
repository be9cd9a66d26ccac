"""What a replica exports to Prometheus; Serve adds application, deployment and replica.

serve_app/configs/monitoring/metrics.md is the table of them all.
"""

import asyncio
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from ray.serve.metrics import Counter, Gauge, Histogram

from deployments.errors import DeadlineError, OverloadedError
from deployments.messages import Embeddings
from deployments.model.errors import InputError

PREFIX = "jina_clip_"
BATCH_S = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30]
BATCH_ITEMS = [1.0, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
BUDGET_USE = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


class TowerMetrics:
    """Metrics of one tower; `unit` is `tokens` or `images`."""

    def __init__(self, unit: str) -> None:
        self._work = Counter(f"{PREFIX}tower_{unit}", f"{unit} embedded")
        self._items = Counter(f"{PREFIX}tower_items", "texts or images embedded")
        self._device_s = Histogram(
            f"{PREFIX}tower_batch_seconds", "device time of a batch", boundaries=BATCH_S
        )
        self._budget_use = Histogram(
            f"{PREFIX}tower_budget_use", "share of the budget that a batch took", BUDGET_USE
        )
        if unit == "images":
            self._decode_s = Histogram(
                f"{PREFIX}tower_decode_seconds", "decoding of the images of a chunk", BATCH_S
            )
        self._batch_items = Histogram(
            f"{PREFIX}tower_batch_items", "texts or images in a batch", BATCH_ITEMS
        )
        self._budget = Gauge(f"{PREFIX}tower_budget", f"{unit} in a batch at most")
        self._queued = Gauge(f"{PREFIX}tower_queued_{unit}", f"{unit} waiting or running")
        self._halvings = Gauge(
            f"{PREFIX}tower_memory_halvings", "times that the budget was halved for lack of memory"
        )
        self._nonfinite_rows = Gauge(
            f"{PREFIX}tower_nonfinite_rows", "items that failed for want of a finite vector"
        )
        self._cosine = Gauge(
            f"{PREFIX}tower_self_check_cosine", "lowest cosine of the pinned inputs with their rows"
        )

    def after_batch(self, items: int, cost: int, budget: int, seconds: float) -> None:
        """Count a batch that the device has run."""
        self._work.inc(cost)
        self._items.inc(items)
        self._device_s.observe(seconds)
        self._budget_use.observe(cost / budget)
        self._batch_items.observe(items)

    def decoded(self, seconds: float) -> None:
        """Count the time from a chunk of images to their pixels, with the wait for a thread."""
        self._decode_s.observe(seconds)

    def sample(
        self, budget: int, queued: int, memory_halvings: int, nonfinite_rows: int, cosine: float
    ) -> None:
        """Set the gauges, at each health check.

        Args:
            budget: tokens or images in a batch at most.
            queued: tokens or images waiting or running.
            memory_halvings: times that the budget was halved.
            nonfinite_rows: items that failed for want of a finite vector.
            cosine: of the last self-check; -1 is shown where a row was not finite.
        """
        self._budget.set(budget)
        self._queued.set(queued)
        self._halvings.set(memory_halvings)
        self._nonfinite_rows.set(nonfinite_rows)
        self._cosine.set(cosine if math.isfinite(cosine) else -1.0)


@dataclass
class Tally:
    """What a request asked for, filled in as it becomes known.

    Attributes:
        tokens, images: admitted.
        items: asked for; `failed` of them got an error in place of a row.
        stages_ms: where the time went, by stage.
    """

    items: int = 0
    tokens: int = 0
    images: int = 0
    failed: int = 0
    stages_ms: Mapping[str, float] = field(default_factory=dict)

    def note(self, answer: Embeddings) -> None:
        """Take the numbers of an answered request."""
        self.tokens, self.images = answer.usage.text_tokens, answer.usage.images
        self.failed = len(answer.failures)
        timings = asdict(answer.timings)
        stages = {name.removesuffix("_ms"): spent for name, spent in timings.items()}
        self.stages_ms = {name: spent for name, spent in stages.items() if spent}


class RouterMetrics:
    """Metrics of one Router."""

    def __init__(self) -> None:
        by: Any = ("lane", "outcome")  # Any: Ray annotates a tuple of one
        self._requests = Counter(f"{PREFIX}requests", "requests answered or ended", by)
        self._items = Counter(f"{PREFIX}items", "texts and images asked for", by)
        self._tokens = Counter(f"{PREFIX}tokens", "tokens of the texts asked for", by)
        self._images = Counter(f"{PREFIX}images", "images asked for", by)
        self._failed = Counter(f"{PREFIX}failed_items", "items answered with an error", ("lane",))
        self._request_s = Histogram(
            f"{PREFIX}request_seconds", "from items to rows", BATCH_S, ("lane",)
        )
        self._stage_s = Histogram(
            f"{PREFIX}stage_seconds", "time of a request in one stage", BATCH_S, ("stage",)
        )
        self._refusals = Counter(f"{PREFIX}refusals", "requests refused", ("reason",))
        self._unleased = Counter(
            f"{PREFIX}unleased_requests", "requests let in by a Router's own share of a key's limit"
        )
        self._retries = Counter(f"{PREFIX}retries", "chunks sent once more", ("tower",))
        reused: Any = ("tower", "how")
        self._reused = Counter(f"{PREFIX}reused_items", "items that need no computing", reused)
        self._outstanding_tokens = Gauge(f"{PREFIX}outstanding_tokens", "admitted, not answered")
        self._outstanding_images = Gauge(f"{PREFIX}outstanding_images", "admitted, not answered")
        self._outstanding_bytes = Gauge(f"{PREFIX}outstanding_bytes", "memory of bodies and images")
        self.under_way = 0

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count the block as a request under way."""
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    @contextmanager
    def request(self, lane: str) -> Iterator[Tally]:
        """Count the request that the block answers, however it ends."""
        tally, start_s, error = Tally(), time.perf_counter(), None
        try:
            with self.refusals(), self.busy():
                yield tally
        except BaseException as raised:
            error = raised
            raise
        finally:
            tags = {"lane": lane, "outcome": outcome(error)}
            self._requests.inc(1, tags)
            counts = (self._items, tally.items), (self._tokens, tally.tokens)
            for counter, count in (*counts, (self._images, tally.images)):
                if count:
                    counter.inc(count, tags)
            if tally.failed:
                self._failed.inc(tally.failed, {"lane": lane})
            self._request_s.observe(time.perf_counter() - start_s, {"lane": lane})
            self.stages(tally.stages_ms)

    def unleased(self) -> None:
        """Count a request that this Router let in without a lease of its key's rate."""
        self._unleased.inc()

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Count a refusal where the block raises one: by the name of its class."""
        try:
            yield
        except (InputError, OverloadedError) as error:
            self._refusals.inc(1, {"reason": type(error).__name__})
            raise

    def stages(self, spent_ms: Mapping[str, float]) -> None:
        """Count where the time of a request went, in milliseconds by stage."""
        for stage, spent in spent_ms.items():
            self._stage_s.observe(spent / 1000, {"stage": stage})

    def retry(self, tower: str) -> None:
        """Count a chunk that is sent once more."""
        self._retries.inc(1, {"tower": tower})

    def reuse(self, tower: str, how: str, items: int) -> None:
        """Count items that were not computed: repeated in their `request`, or in the `cache`."""
        if items:
            self._reused.inc(items, {"tower": tower, "how": how})

    def outstanding(self, tokens: int, images: int, num_bytes: int) -> None:
        """Set what is admitted and not answered."""
        self._outstanding_tokens.set(tokens)
        self._outstanding_images.set(images)
        self._outstanding_bytes.set(num_bytes)


def outcome(error: BaseException | None) -> str:
    """Return how a request ended, in one word."""
    kinds: tuple[tuple[type[BaseException], str], ...] = (
        (InputError, "invalid"),
        (OverloadedError, "refused"),
        (DeadlineError, "timeout"),
        (asyncio.CancelledError, "cancelled"),
        (BaseException, "failed"),
    )
    return next((word for kind, word in kinds if isinstance(error, kind)), "ok")
