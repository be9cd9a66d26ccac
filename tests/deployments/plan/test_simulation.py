"""The simulated tower against cases that can be worked out by hand, and against queueing theory."""

import math

import numpy as np
import pytest

from deployments.plan.load import Load
from deployments.plan.simulation import Run, View, simulate
from deployments.plan.tower import SimulatedReplicas, Tower


def load(times_s: list[float], costs: list[float], duration_s: float = 100.0) -> Load:
    cost = np.array(costs, dtype=np.float64)
    return Load.of(np.array(times_s, dtype=np.float64), cost, cost.copy(), duration_s)


def fixed(count):
    return lambda view: np.atleast_1d(count)


def test_an_idle_replica_takes_a_request_s_own_time() -> None:
    """Nothing is added to a request's own cost where nothing is in its way."""
    outcome = simulate(load([10.0, 50.0], [3.0, 30.0]), Tower(rate=10.0), fixed(1), 0.0)
    assert outcome.delay_s == pytest.approx([0.0, 0.0])
    assert outcome.share_on_time == 1.0


def test_a_burst_is_served_in_order() -> None:
    """Four requests of 2 s at once on one replica wait 0, 2, 4 and 6 s; on time within 2 s."""
    burst = load([10.0] * 4, [20.0] * 4)
    outcome = simulate(burst, Tower(rate=10.0), fixed(1), 0.0)
    assert outcome.delay_s == pytest.approx([0.0, 2.0, 4.0, 6.0])
    assert simulate(burst, Tower(rate=10.0, slack_s=4.5), fixed(1), 0.0).share_on_time == 0.75


def test_replicas_share_a_request_in_pieces() -> None:
    """100 in pieces of 10 on four replicas: 90 by four, then the last piece by one."""
    tower = Tower(rate=10.0, piece=10.0, min_replicas=4)
    outcome = simulate(load([10.0], [100.0]), tower, fixed(4), 0.0)
    assert outcome.delay_s == pytest.approx([90 / 40 + 10 / 10 - 100 / 10])


def test_a_batch_delays_those_in_it() -> None:
    """With a batch of 40 each request waits for the end of a batch, not of its own cost."""
    burst = load([10.0] * 4, [20.0] * 4)
    outcome = simulate(burst, Tower(rate=10.0, batch=40.0), fixed(1), 0.0)
    assert outcome.delay_s == pytest.approx([0.0, 2.0, 6.0, 8.0])


def test_the_mean_wait_is_that_of_an_m_d_1_queue() -> None:
    """Poisson arrivals at 70% of the rate wait rho / (2 mu (1 - rho)) (Pollaczek-Khinchine)."""
    rng = np.random.default_rng(0)
    times_s = np.sort(rng.uniform(0, 40_000, 28_000))
    outcome = simulate(
        load(times_s.tolist(), [10.0] * 28_000, 40_000.0), Tower(rate=10.0), fixed(1), 0.0
    )
    assert outcome.delay_s.mean() == pytest.approx(0.7 / (2 * 0.3), rel=0.08)


def test_ongoing_requests_obey_little_s_law() -> None:
    """Requests in progress are their rate times their time, in an idle tower as in a queue."""
    rng = np.random.default_rng(1)
    for utilization, replicas in ((0.2, 4), (0.7, 1)):
        count = int(4_000 * utilization * replicas)
        times_s = np.sort(rng.uniform(0, 4_000, count)).tolist()
        seen: list[float] = []

        def watch(view: View, replicas: int = replicas, seen: list[float] = seen) -> int:
            seen.append(view.count_ongoing().item())
            return replicas

        tower = Tower(rate=10.0, piece=10.0, min_replicas=replicas)
        outcome = simulate(load(times_s, [10.0] * count, 4_000.0), tower, watch, 0.0)
        expected = count / 4_000 * (1.0 + outcome.delay_s.mean())
        assert np.mean(seen) == pytest.approx(expected, rel=0.15)


def test_a_new_replica_is_paid_for_before_it_serves() -> None:
    """Aimed for at 30 s with a start-up of 40 s: paid from 30, serving from 70."""
    outcome = simulate(
        load([5.0], [1.0]), Tower(rate=10.0), lambda view: 3 if view.now_s >= 30 else 1, 0.0
    )
    assert outcome.replicas.tolist() == [1] * 30 + [3] * 70
    assert outcome.serving.tolist() == [1] * 70 + [3] * 30
    assert outcome.gpu_hours == pytest.approx((30 + 210) / 3600)


def test_starting_replicas_are_stopped_first() -> None:
    """Serve cancels what is not running yet before it takes a running replica away."""
    replicas = SimulatedReplicas(np.array([2]), startup_s=np.array([40.0]))
    replicas.aim_for(np.array([5]), 0)
    replicas.aim_for(np.array([3]), 10)
    assert (replicas.running, replicas.count) == ([2], [3])
    replicas.advance(40)
    assert replicas.running == [3]
    replicas.aim_for(np.array([1]), 50)
    assert (replicas.running, replicas.count) == ([1], [1])


def test_a_queue_waits_for_a_replica_that_starts() -> None:
    """From zero: aimed for at 11 s and serving from 51, a request of 1 s that came at 10.2."""
    outcome = simulate(
        load([10.2], [10.0]),
        Tower(rate=10.0, min_replicas=0),
        lambda view: (view.outstanding > 0) | (view.target > 0) & (view.now_s > 5),
        0.0,
    )
    assert outcome.serving[:5].max() == 1
    assert outcome.delay_s == pytest.approx([51.0 - 10.2])


def test_requests_over_the_budget_are_refused_and_none_is_lost() -> None:
    """A budget of 50 admits two of four requests of 20; what is refused is not on time."""
    tower = Tower(rate=10.0, max_queued=50.0, slack_s=10.0)
    outcome = simulate(load([10.0] * 4 + [60.0], [20.0] * 5), tower, fixed(1), 0.0)
    assert np.isinf(outcome.delay_s).tolist() == [False, False, True, True, False]
    assert outcome.num_refused == 2
    assert outcome.delay_s[[0, 1, 4]] == pytest.approx([0.0, 2.0, 0.0])
    assert outcome.share_on_time == pytest.approx(3 / 5)


def test_a_request_above_the_whole_budget_is_served_alone() -> None:
    """Otherwise it could never be served at all."""
    tower = Tower(rate=10.0, max_queued=50.0)
    outcome = simulate(load([10.0, 11.0], [80.0, 10.0]), tower, fixed(1), 0.0)
    assert np.isinf(outcome.delay_s).tolist() == [False, True]


def test_what_is_refused_has_arrived_and_is_not_served() -> None:
    """A policy sees the demand that did not fit: of 80 at once 40 are refused, and 40 served."""
    seen: list[tuple[float, float]] = []

    def watch(view: View) -> np.ndarray:
        seen.append((view.arrived, view.served.item()))
        return np.array([1])

    tower = Tower(rate=10.0, max_queued=50.0)
    simulate(load([10.0] * 4, [20.0] * 4), tower, watch, 0.0)
    assert seen[-1] == (80.0, 40.0)


def test_served_and_refused_are_all_that_arrived() -> None:
    """Under overload every request is either answered or refused, and the budget is kept."""
    rng = np.random.default_rng(2)
    times_s = np.sort(rng.uniform(0, 300, 2_000)).tolist()
    costs = rng.integers(1, 40, 2_000).astype(float)
    highest: list[float] = []

    def watch(view: View) -> int:
        highest.append(view.outstanding.item())
        return 2

    tower = Tower(rate=20.0, max_queued=400.0, min_replicas=2)
    outcome = simulate(load(times_s, costs.tolist(), 300.0), tower, watch, 0.0)
    served = np.isfinite(outcome.delay_s)
    assert 0 < served.sum() < 2_000
    assert served.sum() + outcome.num_refused == 2_000
    assert max(highest) <= 400.0
    assert costs[served].sum() == pytest.approx(2 * 20.0 * 300, rel=0.05)


def test_percentiles_weigh_items_not_requests() -> None:
    """One late request of 98 images among two punctual ones of 1: the median item is late."""
    outcome = simulate(load([10.0, 10.0, 10.0], [1.0, 1.0, 98.0]), Tower(rate=10.0), fixed(1), 0.0)
    assert outcome.delay_percentiles_s() == pytest.approx((0.2, 0.2, 0.2))


def test_the_warm_up_is_not_counted() -> None:
    """A policy that needs the first minutes to start is judged from when it has."""
    times_s = np.arange(0.5, 600, 0.5).tolist()
    steady = load(times_s, [10.0] * len(times_s), 600.0)
    tower = Tower(rate=10.0)
    cold = simulate(steady, tower, fixed(4), 0.0)
    warm = simulate(steady, tower, fixed(4), 300.0)
    assert cold.share_on_time < 0.97
    assert warm.share_on_time == 1.0
    assert len(warm.replicas) == 600
    assert warm.gpu_hours == pytest.approx(4 * 600 / 3600)
    assert math.isclose(warm.load.items.sum(), 10.0 * len(times_s))


def test_settings_side_by_side_do_not_touch_each_other() -> None:
    """One, two and three replicas with a budget: each as if it had been simulated alone."""
    rng = np.random.default_rng(3)
    times_s = np.sort(rng.uniform(0, 200, 600)).tolist()
    random = load(times_s, rng.integers(1, 20, 600).tolist(), 200.0)
    tower = Tower(rate=10.0, max_queued=60.0, min_replicas=0)
    together = Run(random, tower, fixed(np.array([1, 2, 3])), np.full(3, 40.0), 0.0)
    for setting, count in enumerate((1, 2, 3)):
        alone, one = simulate(random, tower, fixed(count), 0.0), together.outcome(setting)
        assert one.replicas.tolist() == alone.replicas.tolist()
        assert (one.delay_s == alone.delay_s).all()
        assert one.num_refused == alone.num_refused
    assert together.outcome(0).num_refused > together.outcome(2).num_refused > 0
