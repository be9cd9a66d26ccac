"""The clairvoyant bound against cases worked out by hand, and against what keeps all on time."""

import numpy as np
import pytest

from deployments.plan.bound import clairvoyant, interval_lengths
from deployments.plan.load import Load
from deployments.plan.policies import work_based
from deployments.plan.simulation import simulate
from deployments.plan.tower import Tower
from deployments.rehearsal import Targets

TOWER = Tower(rate=10.0, startup_s=40.0)


def load(times_s: np.ndarray, cost: float, duration_s: float) -> Load:
    return Load.of(times_s, np.full(len(times_s), cost), np.full(len(times_s), cost), duration_s)


def test_a_burst_is_paid_for_from_the_start_up_on() -> None:
    """400 at 100.2 s, due at 103.2: 400 over 4 whole seconds need 10 replicas, for 40 s - 4 s."""
    bound = clairvoyant(load(np.full(40, 100.2), 10.0, 200.0), TOWER)
    assert bound.replicas.max() == 10
    many = np.flatnonzero(bound.replicas == 10)
    assert (many.min(), many.max()) == (104 - 40, 100)
    assert bound.replicas[:60].max() == 1


def test_nothing_to_do_costs_the_least_replicas() -> None:
    """One request a minute needs no second replica, and with a least of 3 there are 3."""
    rare = load(np.arange(0, 3600, 60.0), 10.0, 3600.0)
    assert clairvoyant(rare, TOWER).gpu_hours == pytest.approx(1.0)
    assert clairvoyant(rare, Tower(rate=10.0, min_replicas=3)).gpu_hours == pytest.approx(3.0)


def test_steady_work_costs_at_least_itself() -> None:
    """4.5 replicas' worth of work in even requests: at least 4.5, at most 5 replica hours."""
    steady = load(np.arange(0, 3600, 10 / 45), 10.0, 3600.0)
    bound = clairvoyant(steady, TOWER)
    assert bound.work_gpu_hours == pytest.approx(4.5)
    assert 4.4 < bound.gpu_hours <= 5.0


def test_no_start_up_still_leaves_the_work() -> None:
    """Where replicas start at once only the work over half an hour bounds the cost."""
    steady = load(np.arange(0, 3600, 10 / 45), 10.0, 3600.0)
    assert clairvoyant(steady, Tower(rate=10.0, startup_s=0.0)).gpu_hours > 4.4


@pytest.mark.parametrize("seed", range(3))
def test_no_policy_that_is_always_on_time_is_below_the_bound(seed: int) -> None:
    """At every second a schedule with every item on time pays for at least the bound."""
    rng = np.random.default_rng(seed)
    times_s = np.sort(rng.uniform(0, 2000, 2000))
    cost = np.ceil(rng.pareto(1.5, 2000) * 10).clip(1, 250)
    random = Load.of(times_s, cost, cost, 2000.0)
    tower = Tower(rate=10.0, slack_s=2.0)
    outcome = simulate(random, tower, work_based(tower, Targets(1e9, on_time=0.999)))
    if outcome.share_on_time < 1:
        outcome = simulate(random, tower, lambda view: 40)
    bound = clairvoyant(random, tower)
    assert outcome.share_on_time == 1.0
    assert (bound.replicas <= outcome.replicas).all()
    assert bound.work_gpu_hours * 0.95 < bound.gpu_hours <= outcome.gpu_hours


def test_interval_lengths_end_at_the_longest() -> None:
    """Each is longer than the one before; none where there is no time."""
    lengths = interval_lengths(40)
    assert lengths == sorted(set(lengths))
    assert (lengths[0], lengths[-1]) == (1, 40)
    assert interval_lengths(0) == []
