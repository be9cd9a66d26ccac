"""Recorders in the place of Ray's metrics, and an emulated GPU."""

from collections import defaultdict

import pytest


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


@pytest.fixture
def gpu():
    """An H100, emulated: nothing that this test starts sees that there is none."""
    from tests.emulated_gpu.gpu import emulated_gpu

    with emulated_gpu() as emulated:
        yield emulated
