"""Loads: copies of requests, cells of many, and the warm-up."""

import numpy as np
import pytest

from deployments.plan import load as loads
from deployments.plan.load import Load
from deployments.plan.policies import request_count
from deployments.plan.simulation import simulate
from deployments.plan.tower import Tower


def test_scaling_copies_requests_near_their_time() -> None:
    """Twice and a half the requests of the same sizes, none moved by more than the jitter."""
    load = Load.of(np.full(1000, 50.0), np.full(1000, 7.0), np.ones(1000), 100.0)
    scaled = load.scaled(2.5)
    assert 2400 < len(scaled.cost) < 2600
    assert set(scaled.cost) == {7.0}
    assert 40 <= scaled.arrival_s.min() < 45
    assert 55 < scaled.arrival_s.max() <= 60
    assert (np.diff(scaled.arrival_s) >= 0).all()


def test_the_warm_up_mirrors_the_beginning() -> None:
    """What arrives in the first seconds arrives before them too, in order."""
    load = Load.of(np.array([1.0, 4.0, 9.0]), np.array([10.0, 20.0, 30.0]), np.ones(3), 10.0)
    warm = load.warmed_up(5.0)
    assert warm.arrival_s.tolist() == [-4, -1, 1, 4, 9]
    assert warm.cost.tolist() == [20, 10, 10, 20, 30]


def random_load(count: int, duration_s: float) -> Load:
    rng = np.random.default_rng(0)
    cost = np.ceil(rng.pareto(1.5, count) * 20).clip(1, 2000)
    return Load.of(rng.uniform(0, duration_s, count), cost, np.ones(count), duration_s)


def test_many_requests_are_merged_and_served_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """In cells nothing is lost, and a policy has the same cost and share on time within 1%."""
    one = random_load(4_000, 1200.0)
    each = one.scaled(50.5)
    monkeypatch.setattr(loads, "MAX_ROWS", 20_000)
    merged = one.scaled(50.5)
    assert len(merged.cost) < len(each.cost) / 2
    assert merged.num_requests == pytest.approx(each.num_requests, rel=0.01)
    assert merged.cost.sum() == pytest.approx(each.cost.sum(), rel=0.01)
    assert merged.items.sum() == merged.num_requests
    assert (np.diff(merged.arrival_s) >= 0).all()
    tower = Tower(rate=each.cost.sum() / 1200 / 4, piece=100.0, batch=200.0)
    exact, cells = (simulate(x, tower, request_count(tower, 1.0)) for x in (each, merged))
    assert cells.gpu_hours == pytest.approx(exact.gpu_hours, rel=0.01)
    assert cells.share_on_time == pytest.approx(exact.share_on_time, abs=0.01)
    assert 0.1 < exact.share_on_time < 0.99


def test_rows_do_not_grow_with_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times the requests in cells are at most twice the rows: cells fill up."""
    monkeypatch.setattr(loads, "MAX_ROWS", 20_000)
    one = random_load(1_000, 300.0)
    assert len(one.scaled(1000).cost) < 2 * len(one.scaled(100).cost)


def test_more_than_can_be_drawn_is_refused_with_what_fits() -> None:
    """At once, and the scale that is named is accepted."""
    one = random_load(900, 300.0)
    with pytest.raises(ValueError, match=r"1,800,000,000 .* --scale 1\.1e\+06 fits"):
        one.scaled(2e6)
    loads.check_number(900, 1.1e6)


def test_less_of_a_long_trace_is_taken_from_all_of_it(monkeypatch):
    """Half of 1,500 requests, where 1,000 are drawn at once: the last third is not left out."""
    monkeypatch.setattr("deployments.plan.load.MAX_ROWS", 1000)
    load = Load.of(np.arange(1500.0), np.ones(1500), np.ones(1500), 1500.0)
    half = load.scaled(0.5)
    assert half.num_requests == pytest.approx(750, rel=0.1)
    assert half.arrival_s[-1] > 1400
    assert (np.diff(half.arrival_s) >= 0).all()
