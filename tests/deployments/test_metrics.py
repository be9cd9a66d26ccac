"""What replicas count, read from recorders in the place of Ray's metrics."""

import asyncio
from collections import defaultdict

import pytest

from deployments.errors import DeadlineError, OverloadedError
from deployments.metrics import RouterMetrics
from deployments.model.errors import TextTooLongError


@pytest.fixture
def counted(monkeypatch):
    """Every value by metric and tags, as soon as RouterMetrics are made."""
    values = defaultdict(float)

    class Recorder:
        def __init__(self, name, *_args, **_options):
            self.name = name

        def inc(self, value, tags=None):
            values[self.name, *(tags or {}).values()] += value

        observe = set = inc

    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(f"deployments.metrics.{kind}", Recorder)
    return values


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
