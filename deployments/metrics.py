"""What a tower replica exports to Prometheus; Serve adds the deployment and the replica."""

from typing import Any

from ray.serve.metrics import Counter, Gauge, Histogram

from deployments.batching import Batcher, Ran
from deployments.finite import FiniteGuard

PREFIX = "jina_clip_"
BATCH_S = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30]
BUDGET_USE = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


class TowerMetrics:
    """Metrics of one tower; `unit` is `tokens` or `images`."""

    def __init__(self, unit: str) -> None:
        self._work = Counter(f"{PREFIX}tower_{unit}", f"{unit} embedded")
        self._items = Counter(f"{PREFIX}tower_items", "texts or pictures embedded")
        self._device_s = Histogram(
            f"{PREFIX}tower_batch_seconds", "device time of a batch", boundaries=BATCH_S
        )
        self._budget_use = Histogram(
            f"{PREFIX}tower_budget_use", "share of the budget that a batch took", BUDGET_USE
        )
        self._budget = Gauge(f"{PREFIX}tower_budget", f"{unit} in a batch at most")
        self._queued = Gauge(f"{PREFIX}tower_queued_{unit}", f"{unit} waiting or running")
        self._halvings = Gauge(
            f"{PREFIX}tower_memory_halvings", "times that the budget was halved for lack of memory"
        )
        self._recomputed = Gauge(
            f"{PREFIX}tower_nonfinite_recomputed", "rows computed again in float32"
        )
        self._nonfinite = Gauge(f"{PREFIX}tower_nonfinite_failed", "items without a finite vector")

    def after_batch(self, ran: Ran) -> None:
        """Count a batch that the device has run."""
        self._work.inc(ran.cost)
        self._items.inc(ran.items)
        self._device_s.observe(ran.seconds)
        self._budget_use.observe(ran.cost / ran.budget)

    def sample(self, batcher: Batcher[Any, Any], guard: FiniteGuard[Any], queued: int) -> None:
        """Set the gauges; called at each health check."""
        self._budget.set(batcher.queue.max_cost)
        self._queued.set(queued)
        self._halvings.set(batcher.memory_halvings)
        self._recomputed.set(guard.recomputed)
        self._nonfinite.set(guard.failed)
