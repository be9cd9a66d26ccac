"""The policy as Ray Serve runs it: whose numbers go where, and what is pickled."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

from deployments import autoscaling
from deployments.autoscaling import TwoTowerPolicy, latest


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
        raw_metrics=series,
        policy_state={},
        current_time=now_s,
        target_num_replicas=target,
        current_num_replicas=target,
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=100,
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


PICKLE = """
import sys
from ray import cloudpickle  # a Ray worker has imported it before anything of ours
from deployments import autoscaling
cloudpickle.register_pickle_by_value(autoscaling)  # what Serve does, and all that it does
sys.stdout.buffer.write(cloudpickle.dumps(autoscaling.TwoTowerPolicy))
"""
DECIDE = """
import pickle, sys
from types import SimpleNamespace as Given
class Key(str):
    name = property(str)
def series(**last):
    return {name: {"r": [Given(value=value)]} for name, value in last.items()}
def context(**last):
    return Given(raw_metrics=series(**last), policy_state={}, current_time=0.0,
        target_num_replicas=1, current_num_replicas=1,
        capacity_adjusted_min_replicas=1, capacity_adjusted_max_replicas=9)
policy = pickle.loads(sys.stdin.buffer.read())(startup_s=5.0)
router = context(images_outstanding=7200.0, images_arrived_total=0.0)
counts, _ = policy({Key("Router"): router, Key("VisionTower"): context(images_per_s=60.0)})
print(counts, any(name.startswith("deployments") for name in sys.modules))
"""


def test_the_policy_decides_where_this_package_is_not_installed() -> None:
    """Serve's controller unpickles it by value, what it imports of ours included."""
    data = subprocess.run([sys.executable, "-c", PICKLE], capture_output=True, check=True).stdout
    command = [sys.executable, "-I", "-c", DECIDE]
    ran = subprocess.run(command, input=data, capture_output=True, check=True)
    assert ran.stdout.decode().strip() == "{'Router': 1, 'VisionTower': 4} False"
