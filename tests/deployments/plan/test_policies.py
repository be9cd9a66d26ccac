"""The compared policies: Serve's own treatment of a wish, its request count, and ours."""

import random

import numpy as np
import pytest
from ray.serve.autoscaling_policy import _apply_delay_logic, _apply_scaling_factors
from ray.serve.config import AutoscalingConfig

from deployments.plan.load import Load
from deployments.plan.policies import (
    RequestCount,
    ServeLoop,
    ServeSettings,
    request_count,
    work_based,
)
from deployments.plan.simulation import View, simulate
from deployments.plan.tower import Tower
from deployments.rehearsal import Targets

TARGETS = Targets(work_per_replica=1e9, startup_s=20.0)


def view(now_s: float, target: int = 1, running: int = 1, ongoing: float = 0.0) -> View:
    none, counts = np.zeros(1), (np.array([running]), np.array([target]))
    return View(now_s, none.copy(), 0.0, none, 0.0, lambda: np.array([ongoing]), *counts)


def steady_load(per_s: float, cost: float, duration_s: float) -> Load:
    rng = np.random.default_rng(0)
    times_s = np.sort(rng.uniform(0, duration_s, int(per_s * duration_s)))
    return Load.of(times_s, np.full(len(times_s), cost), np.ones(len(times_s)), duration_s)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "settings",
    [ServeSettings(), ServeSettings(3.0, 7.0), ServeSettings(0.0, 5.0, 0.5, 0.3)],
    ids=["defaults", "short delays", "gains"],
)
def test_the_serve_loop_decides_as_ray_does(settings: ServeSettings, seed: int) -> None:
    """Over random wishes, every target is the one of Ray's own functions."""
    rng = random.Random(seed)
    config = AutoscalingConfig(
        min_replicas=1,
        max_replicas=20,
        upscale_delay_s=settings.upscale_delay_s,
        downscale_delay_s=settings.downscale_delay_s,
        upscaling_factor=settings.upscaling_factor,
        downscaling_factor=settings.downscaling_factor,
    )
    wish, state, ours, theirs, targets = 1.0, {}, 1, 1, set()
    loop = ServeLoop(lambda view: np.array([wish]), settings, Tower(rate=1.0, max_replicas=20))
    for now_s in range(2000):
        if rng.random() < 0.1:
            wish = rng.uniform(0, 12)
        running = max(1, theirs - rng.randint(0, 1))
        gained = max(0, _apply_scaling_factors(wish, running, config))
        theirs, state = _apply_delay_logic(gained, theirs, config, state, float(now_s))
        theirs = min(max(theirs, 1), 20)
        ours = int(loop(view(float(now_s), ours, running)).item())
        assert ours == theirs
        targets.add(ours)
    assert len(targets) > 2


def test_a_request_wakes_a_tower_from_zero() -> None:
    """At zero replicas Serve does not ask the policy: a waiting request starts one."""
    loop = ServeLoop(lambda view: np.zeros(1), ServeSettings(), Tower(rate=1.0, min_replicas=0))
    asleep = view(0.0, target=0, running=0)
    assert loop(asleep) == 0
    asleep.outstanding = np.array([5.0])
    assert loop(asleep) == 1


def test_request_count_is_the_mean_in_progress_over_its_target() -> None:
    """Reported each third second, over the last six: (0+0+0+12+12+12) / 6 / 2 is 3."""
    policy = RequestCount(target_ongoing_requests=2.0, look_back_s=6.0, metrics_interval_s=3.0)
    wishes = [policy(view(second, ongoing=0.0 if second < 3 else 12.0)) for second in range(6)]
    assert wishes == [0, 0, 0, 0, 0, 3]


def test_work_needs_as_many_replicas_as_it_fills() -> None:
    """Requests of 20 at 10 a second on replicas of 50 fill 4; with what they vary by, 5 or 6."""
    tower = Tower(rate=50.0, piece=20.0)
    outcome = simulate(steady_load(10.0, 20.0, 1200.0), tower, work_based(tower, TARGETS))
    assert set(outcome.replicas.tolist()) <= {5, 6}
    assert outcome.share_on_time > 0.999
    tight = simulate(steady_load(10.0, 20.0, 1200.0), tower, lambda view: 3)
    assert tight.share_on_time < 0.5


def test_work_sees_what_the_request_count_does_not() -> None:
    """Costs grow tenfold at the same requests per second: only one of the policies follows."""
    calm, heavy = steady_load(4.0, 5.0, 1800.0), steady_load(4.0, 50.0, 1800.0)
    cost = np.where(calm.arrival_s < 600, calm.cost, heavy.cost)
    load = Load.of(calm.arrival_s, cost, cost, 1800.0)
    tower = Tower(rate=50.0, piece=5.0)
    ours = simulate(load, tower, work_based(tower, TARGETS))
    ray = simulate(load, tower, request_count(tower))
    assert ours.share_on_time > 0.9
    assert ray.share_on_time < ours.share_on_time
    assert ray.gpu_hours > ours.gpu_hours


def test_targets_of_the_request_count_trade_hours_for_time() -> None:
    """A lower target pays for more replicas and is late less often."""
    load, tower = steady_load(10.0, 20.0, 1200.0), Tower(rate=50.0, piece=20.0)
    low = simulate(load, tower, request_count(tower, 0.3))
    high = simulate(load, tower, request_count(tower, 0.6))
    assert low.gpu_hours > high.gpu_hours
    assert low.share_on_time >= high.share_on_time


def test_bounds_hold_whatever_is_asked_for() -> None:
    """Neither more than the most nor fewer than the least, nor a fraction."""
    for wish, expected in ((100.0, 5), (0.0, 2), (2.1, 3)):
        tower = Tower(rate=1.0, min_replicas=2, max_replicas=5)
        loop = ServeLoop(lambda view, wish=wish: np.array([wish]), ServeSettings(0.0, 0.0), tower)
        assert loop(view(0.0, target=3, running=3)) == expected
