"""The rules of the autoscaling decision, with plain numbers; and the policy as Serve runs it."""

import pickle
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle

from deployments import autoscaling
from deployments.autoscaling import Memory, Observation, Targets, TwoTowerPolicy, decide, latest

NEW = Memory()
TARGETS = Targets(work_per_replica=100.0, delay_s=0.0, headroom=1.5, window_s=10.0, hold_s=60.0)
SEEN = Observation(
    now_s=0.0, outstanding=0.0, queued=0.0, arrived={"r": 0.0}, throughput=10.0, target=1
)


def steady(
    seconds: int, per_s: float, targets: Targets = TARGETS, memory: Memory = NEW, **seen: Any
) -> tuple[int, Memory]:
    """Decide once a second under constant arrivals; return the last decision."""
    start_s = memory.samples[-1][0] + 1 if memory.samples else 0.0
    count, total = seen.pop("target", 1), memory.totals["r"] if memory.totals else 0.0
    for second in range(seconds):
        total += per_s
        now = SEEN._replace(now_s=start_s + second, arrived={"r": total}, target=count, **seen)
        count, memory = decide(now, targets, memory)
    return count, memory


def test_replicas_keep_up_with_arrivals_and_headroom() -> None:
    """40 a second at 10 a replica, times 1.5, are 6 replicas."""
    assert steady(30, 40.0)[0] == 6
    assert steady(30, 40.0, replace(TARGETS, headroom=1.0))[0] == 4


def test_replicas_clear_what_waits() -> None:
    """250 outstanding at 100 a replica are 3 replicas, added to those that keep up."""
    assert decide(SEEN._replace(outstanding=250.0), TARGETS, Memory())[0] == 3
    assert steady(30, 40.0, outstanding=150.0)[0] == 8


def test_a_target_delay_goes_before_the_work_per_replica() -> None:
    """In 5 s at 10 a second a replica clears 50; unknown throughput falls back to 100."""
    seen = SEEN._replace(outstanding=250.0)
    timed = replace(TARGETS, delay_s=5.0)
    assert decide(seen, timed, Memory())[0] == 5
    assert decide(seen._replace(throughput=None), timed, Memory())[0] == 3


def test_the_towers_own_queues_are_a_floor() -> None:
    """Work that a dead Router took out of its count is still seen in the towers."""
    assert decide(SEEN._replace(queued=350.0), TARGETS, Memory())[0] == 4
    assert decide(SEEN._replace(queued=350.0, outstanding=450.0), TARGETS, Memory())[0] == 5


@pytest.mark.parametrize("missing", ["outstanding", "arrived"])
def test_missing_routers_hold_the_count(missing: str) -> None:
    """No Router series is not the same as no work: the first holds, the second scales down."""
    gone = SEEN._replace(now_s=1000.0, target=7)
    assert decide(gone._replace(**{missing: None}), TARGETS, Memory())[0] == 7
    _, memory = decide(gone, TARGETS, Memory())
    assert decide(gone._replace(now_s=1100.0), TARGETS, memory)[0] == 1


def test_missing_routers_still_scale_up_by_the_towers_queues() -> None:
    """A hold is a floor, not a ceiling."""
    seen = SEEN._replace(outstanding=None, arrived=None, queued=900.0, target=7)
    assert decide(seen, TARGETS, Memory())[0] == 9


def test_unknown_throughput_never_scales_down() -> None:
    """Arrivals without a measured rate hold the count; a rate once measured is remembered."""
    assert steady(200, 1.0, throughput=None, target=5)[0] == 5
    _, memory = steady(2, 1.0, throughput=10.0, target=5)
    assert steady(200, 1.0, memory=memory, throughput=None, target=5)[0] == 1


def test_the_highest_count_of_late_is_held_then_let_go() -> None:
    """A burst's replicas stay for the hold, and go when it is over."""
    busy, memory = steady(30, 40.0)
    held, memory = steady(55, 0.0, memory=memory, target=busy)
    assert (busy, held) == (6, 6)
    assert steady(30, 0.0, memory=memory, target=held)[0] == 1


def test_alternating_load_does_not_flap() -> None:
    """Bursts closer together than the hold leave the count where the highest put it."""
    count, memory = steady(30, 40.0)
    counts = set()
    for per_s in (0.0, 40.0) * 5:
        count, memory = steady(20, per_s, memory=memory, target=count)
        counts.add(count)
    assert counts == {6}


def test_a_lost_memory_holds_the_count() -> None:
    """After Serve dropped the state, the count stands for the hold and then follows the load."""
    count, memory = steady(50, 10.0, target=8)
    assert count == 8
    assert steady(30, 10.0, memory=memory, target=8)[0] == 2


def test_zero_only_where_it_is_asked_for() -> None:
    """Idle towers keep one replica; with `scale_to_zero` none, and work brings one back."""
    to_zero = replace(TARGETS, scale_to_zero=True)
    assert steady(90, 0.0)[0] == 1
    count, memory = steady(90, 0.0, to_zero)
    assert count == 0
    woken = SEEN._replace(now_s=91.0, outstanding=1.0, target=0)
    assert decide(woken, to_zero, memory)[0] == 1


def test_a_restarted_router_is_neither_a_burst_nor_a_silence() -> None:
    """Each Router's own increase counts: one begins anew at 0, one appears with a large total."""
    _, memory = decide(SEEN._replace(arrived={"a": 1e6, "b": 500.0}), TARGETS, Memory())
    after = SEEN._replace(now_s=1.0, arrived={"a": 0.0, "b": 520.0, "c": 1e6})
    _, memory = decide(after, TARGETS, memory)
    assert memory.arrived == 20.0


def test_fast_ticks_keep_a_bounded_memory() -> None:
    """Serve decides ten times a second; the memory stays as long as the window."""
    memory = Memory()
    for tick in range(2000):
        seen = SEEN._replace(now_s=tick / 10, arrived={"r": tick * 2.0})
        count, memory = decide(seen, TARGETS, memory)
    assert count == 3
    assert len(memory.samples) <= 12
    assert len(memory.peaks) <= 3


class Key(str):
    """A hashable stand-in for Ray's DeploymentID."""

    @property
    def name(self) -> str:
        return str(self)


def context(target: int = 1, now_s: float = 0.0, **metrics: dict[str, float]) -> Any:
    """An AutoscalingContext with the last value of each replica's series."""
    series = {
        name: {replica: [SimpleNamespace(value=value)] for replica, value in values.items()}
        for name, values in metrics.items()
    }
    return SimpleNamespace(
        raw_metrics=series, policy_state={}, current_time=now_s, target_num_replicas=target
    )


def test_each_tower_follows_its_own_work_in_all_routers() -> None:
    """Images scale the VisionTower and leave the TextTower; a silent Router keeps its count."""
    router = context(
        images_outstanding={"r1": 300.0, "r2": 200.0},
        images_arrived_total={"r1": 0.0, "r2": 0.0},
        text_tokens_outstanding={"r1": 0.0, "r2": 0.0},
        text_tokens_arrived_total={"r1": 0.0, "r2": 0.0},
    )
    contexts = {Key("Router"): router, Key("TextTower"): context(), Key("VisionTower"): context()}
    counts, states = TwoTowerPolicy(target_images_per_replica=100.0)(contexts)
    assert counts == {"Router": 1, "TextTower": 1, "VisionTower": 5}
    assert set(states) == set(contexts)


def test_targets_that_the_router_reports_take_effect_at_once() -> None:
    """A new target needs no new policy: the next decision has it."""
    policy = TwoTowerPolicy(target_images_per_replica=100.0, delay_s=0.0)
    work = {"images_outstanding": {"r": 400.0}, "images_arrived_total": {"r": 0.0}}

    def decided(**reported: dict[str, float]) -> int:
        contexts = {Key("Router"): context(**work, **reported), Key("VisionTower"): context()}
        return policy(contexts)[0]["VisionTower"]

    assert decided() == 4
    assert decided(target_images_per_replica={"r": 50.0}) == 8
    work["images_outstanding"] = {"r": 0.0}
    assert decided(scale_to_zero={"r": 1.0}) == 1  # the present replica is held for a while


def test_no_router_holds_every_tower() -> None:
    """With the Router's context gone or silent, both towers keep what they have."""
    towers = {Key("TextTower"): context(target=3), Key("VisionTower"): context(target=2)}
    kept = {"TextTower": 3, "VisionTower": 2}
    assert TwoTowerPolicy()(towers)[0] == kept
    silent = towers | {Key("Router"): context(target=4)}
    assert TwoTowerPolicy()(silent)[0] == kept | {"Router": 4}


def test_throughput_is_the_mean_of_the_replicas_that_measured_one() -> None:
    """A replica that has not been busy reports 0, which is not a rate."""
    tower = context(images_per_s={"a": 100.0, "b": 0.0, "c": 200.0})
    names = autoscaling.TOWERS["VisionTower"]
    assert autoscaling.observe(tower, {}, names).throughput == 150.0
    assert autoscaling.observe(context(), {}, names).throughput is None


def test_values_that_are_not_finite_count_as_missing() -> None:
    """A NaN from one replica must not reach a ceil()."""
    reported = context(images_outstanding={"a": float("nan"), "b": 5.0}).raw_metrics
    assert latest(reported, "images_outstanding") == {"b": 5.0}


def test_the_module_works_pickled_by_value() -> None:
    """Serve's controller unpickles the policy where this package cannot be imported."""
    cloudpickle.register_pickle_by_value(autoscaling)
    try:
        data = cloudpickle.dumps(TwoTowerPolicy)
    finally:
        cloudpickle.unregister_pickle_by_value(autoscaling)
    script = (
        "import sys, pickle\n"
        "policy = pickle.loads(sys.stdin.buffer.read())(hold_s=5.0)\n"
        "print(policy({}), 'deployments' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], input=data, capture_output=True, check=True
    )
    assert ran.stdout.decode().strip() == "({}, {}) False"


def test_the_memory_survives_pickling() -> None:
    """State may be written down between decisions."""
    _, memory = steady(5, 3.0)
    assert pickle.loads(pickle.dumps(memory)) == memory
