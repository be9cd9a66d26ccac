"""What replicas count, read from recorders in the place of Ray's metrics."""

import asyncio

import pytest

from deployments.errors import DeadlineError, OverloadedError
from deployments.metrics import RouterMetrics, TowerMetrics
from deployments.model.errors import TextTooLongError


def test_a_request_counts_its_work_by_lane_and_outcome(counted):
    """Items, tokens, images and the time of each stage, once, when it has ended."""
    metrics = RouterMetrics()
    with metrics.request("bulk") as tally:
        tally.items, tally.tokens, tally.images, tally.failed = 3, 40, 1, 1
        tally.stages_ms = {"queue": 500.0}
        assert not counted
    assert counted["jina_clip_requests", "bulk", "ok"] == 1
    assert counted["jina_clip_items", "bulk", "ok"] == 3
    assert counted["jina_clip_tokens", "bulk", "ok"] == 40
    assert counted["jina_clip_images", "bulk", "ok"] == 1
    assert counted["jina_clip_failed_items", "bulk"] == 1
    assert counted["jina_clip_stage_seconds", "queue"] == 0.5
    assert not any(name[0] == "jina_clip_refusals" for name in counted)


@pytest.mark.parametrize(
    ("error", "outcome", "refused"),
    [
        (TextTooLongError("x"), "invalid", 1),
        (OverloadedError("x", 1.0), "refused", 1),
        (DeadlineError("x"), "timeout", 0),
        (asyncio.CancelledError(), "cancelled", 0),
        (ValueError("x"), "failed", 0),
    ],
)
def test_a_request_that_raises_is_counted_by_what_it_raised(counted, error, outcome, refused):
    """Refusals carry the name of the error's class; the error goes on to the caller."""
    metrics = RouterMetrics()
    with pytest.raises(type(error)), metrics.request("interactive"):
        raise error
    assert counted["jina_clip_requests", "interactive", outcome] == 1
    assert counted["jina_clip_refusals", type(error).__name__] == refused


def test_a_batch_counts_its_items_and_the_share_of_its_budget(counted):
    """Tokens or images, by the name of the unit."""
    metrics = TowerMetrics("tokens")
    metrics.after_batch(items=3, cost=512, budget=2048, seconds=0.5)
    assert counted["jina_clip_tower_tokens",] == 512
    assert counted["jina_clip_tower_items",] == counted["jina_clip_tower_batch_items",] == 3
    assert counted["jina_clip_tower_budget_use",] == 0.25
    assert counted["jina_clip_tower_batch_seconds",] == 0.5


@pytest.mark.parametrize(("cosine", "shown"), [(0.9995, 0.9995), (float("nan"), -1.0)])
def test_a_health_check_sets_the_gauges_of_a_tower(counted, cosine, shown):
    """A self-check without a finite cosine is shown as -1: Prometheus compares NaN with nothing."""
    TowerMetrics("images").sample(
        budget=32, queued=9, memory_halvings=1, nonfinite_rows=2, cosine=cosine
    )
    assert counted == {
        ("jina_clip_tower_budget",): 32,
        ("jina_clip_tower_queued_images",): 9,
        ("jina_clip_tower_memory_halvings",): 1,
        ("jina_clip_tower_nonfinite_rows",): 2,
        ("jina_clip_tower_self_check_cosine",): shown,
    }
