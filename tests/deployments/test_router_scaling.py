"""How many Routers there are: by their processor time, and by the machine where nothing is said."""

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from deployments.autoscaling import TwoTowerPolicy
from deployments.config import AppConfig
from serve_app.settings import with_routers


class Key(str):
    """A hashable stand-in for Ray's DeploymentID."""

    @property
    def name(self) -> str:
        return str(self)


def routers(now_s: float, *cores: float, target: int = 1) -> Any:
    """The Routers' context where each has used so many cores over the last five seconds."""
    series = {
        f"r{i}": [SimpleNamespace(timestamp=t, value=100.0 + share * t) for t in (0.0, 2.0, 5.0)]
        for i, share in enumerate(cores)
    }
    return SimpleNamespace(
        raw_metrics={"cpu_s_total": series},
        policy_state={},
        current_time=now_s,
        target_num_replicas=target,
    )


@pytest.mark.parametrize(
    ("cores", "count"),
    [((0.0,), 1), ((0.69,), 1), ((0.9,), 2), ((0.9, 0.9), 3), ((0.2, 0.1, 0.1), 1)],
)
def test_routers_follow_the_processor_time_that_they_take(cores, count) -> None:
    """Each Router's event loop is one thread: it is full before its core is."""
    key = Key("Router")
    policy = TwoTowerPolicy(startup_s=2.0)
    counts, states = policy({key: routers(0.0, *cores, target=1)})
    assert counts == {key: count}
    later = routers(100.0, *cores, target=5)  # whatever the count was, the load decides
    later.policy_state = states[key]
    assert policy({key: later})[0] == {key: count}


def test_fewer_routers_wait_for_the_hold_and_one_point_is_no_rate() -> None:
    """A Router that has just started says nothing of its load; a lull keeps the count."""
    key = Key("Router")
    policy = TwoTowerPolicy(startup_s=20.0)
    counts, states = policy({key: routers(0.0, 0.9, 0.9, target=2)})
    assert counts[key] == 3
    lull = routers(30.0, 0.1, 0.1, 0.0, target=3)
    lull.policy_state = states[key]
    assert policy({key: lull})[0][key] == 3
    over = routers(90.0, 0.1, 0.1, 0.0, target=3)
    over.policy_state = states[key]
    assert policy({key: over})[0][key] == 1
    fresh = routers(0.0, target=2)
    fresh.raw_metrics["cpu_s_total"] = {"new": [SimpleNamespace(timestamp=0.0, value=9.0)]}
    assert policy({key: fresh})[0][key] == 2


@pytest.mark.parametrize(("cores", "bounds"), [(8, (2, 2)), (16, (2, 4)), (64, (2, 16))])
def test_a_machine_with_cores_to_spare_has_several_routers(cores, bounds) -> None:
    """One for four cores at most; the towers keep the rest."""
    router = with_routers(AppConfig(), cores).router
    assert (router.least_replicas, router.most_replicas) == bounds


@pytest.mark.parametrize("said", [{"num_replicas": 1}, {"scaling": {"max_replicas": 3}}])
def test_what_the_configuration_says_of_routers_stands(said) -> None:
    """Nor does a small machine get more than one."""
    config = AppConfig.model_validate({"router": said})
    assert with_routers(config, 64) == config
    assert with_routers(AppConfig(), 7).router.most_replicas == 1


def test_no_routers_at_all_is_refused() -> None:
    """Nothing would be there to take the request that brings the first one back."""
    with pytest.raises(ValidationError, match="HTTP comes in by a Router"):
        AppConfig.model_validate({"router": {"scaling": {"min_replicas": 0, "max_replicas": 3}}})
