"""Ray Serve's autoscaling policy for the Routers and both towers.

Only this module knows where Ray Serve keeps the numbers; `deployments.rehearsal` decides for the
towers. Routers follow the processor time that they take. Serve pickles a policy's module by value
into its controller, where this package need not be installed: both modules import nothing but the
standard library.
"""

import math
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from deployments import rehearsal
from deployments.rehearsal import (
    ROUNDING,
    WINDOW,
    Memory,
    Observation,
    Targets,
    decide,
    hold,
)

ROUTER = "Router"
ROUTER_CORES = 0.7  # of the one core that a Router's event loop can fill
Context = Any  # Ray's AutoscalingContext

# Serve does so with this module alone. It has been imported where anything is pickled.
if (pickler := sys.modules.get("ray.cloudpickle")) is not None:
    pickler.register_pickle_by_value(rehearsal)


class _Names:
    """The metrics of one tower, of what is outstanding (`work`) and by `unit`."""

    def __init__(self, work: str, unit: str) -> None:
        self.outstanding, self.arrived = f"{work}_outstanding", f"{work}_arrived_total"
        self.queued, self.throughput = f"queued_{unit}", f"{unit}_per_s"
        self.target = f"target_{unit}_per_replica"


TOWERS: Mapping[str, _Names] = {
    "TextTower": _Names("text_tokens", "tokens"),
    "VisionTower": _Names("images", "images"),
}


class TwoTowerPolicy:
    """Ray Serve's application-level policy: called with every deployment's context at each tick.

    The targets that the Routers report (from their `user_config`) go before these arguments, since
    changing a policy's arguments restarts replicas and changing a `user_config` does not.
    """

    TOKENS_PER_REPLICA = 1_000_000.0
    IMAGES_PER_REPLICA = 1_000.0

    def __init__(
        self,
        target_tokens_per_replica: float = TOKENS_PER_REPLICA,
        target_images_per_replica: float = IMAGES_PER_REPLICA,
        **targets: float,
    ) -> None:
        self._hold_s = WINDOW * targets.get("startup_s", Targets.startup_s)
        self._targets = {
            "TextTower": Targets(target_tokens_per_replica, **targets),  # type: ignore[arg-type]
            "VisionTower": Targets(target_images_per_replica, **targets),  # type: ignore[arg-type]
        }

    # The keys are Ray's DeploymentID.
    def __call__(self, contexts: Mapping[Any, Context]) -> tuple[dict[Any, int], dict[Any, Any]]:
        """Return the replicas and the state of each deployment."""
        router = next((ctx for key, ctx in contexts.items() if key.name == ROUTER), None)
        reported = (router.raw_metrics if router else None) or {}
        counts, states = {}, {}
        for key, context in contexts.items():
            memory = (context.policy_state or {}).get("memory") or Memory()
            if names := TOWERS.get(key.name):
                targets = live_targets(self._targets[key.name], reported, names)
                seen = observe(context, reported, names)
                counts[key], memory = decide(seen, targets, memory)
            else:
                counts[key], memory = decide_routers(context, reported, memory, self._hold_s)
            states[key] = {"memory": memory}
        return counts, states


def decide_routers(
    context: Context, reported: Mapping[str, Any], memory: Memory, hold_s: float
) -> tuple[int, Memory]:
    """Return the Routers that their processor time asks for, and the memory for the next time."""
    now_s, count = context.current_time or 0.0, context.target_num_replicas
    memory.peaks = memory.peaks or deque([(now_s, count)])
    if (cores := busy_cores(reported)) is not None:
        count = max(math.ceil(cores / ROUTER_CORES - ROUNDING), 1)
    return hold(memory.peaks, now_s, count, hold_s), memory


def busy_cores(reported: Mapping[str, Any]) -> float | None:
    """Return the cores that all Routers fill together, of late; None where none says."""
    ends = [
        (points[0], points[-1]) for points in reported.get("cpu_s_total", {}).values() if points
    ]
    spans = [(last.timestamp - first.timestamp, last.value - first.value) for first, last in ends]
    rates = [spent / span for span, spent in spans if span > 0]
    return sum(rates) if rates else None


def observe(context: Context, reported: Mapping[str, Any], names: _Names) -> Observation:
    """Read a tower's numbers from its `AutoscalingContext` and from what the Routers report."""
    own = context.raw_metrics or {}
    outstanding = latest(reported, names.outstanding)
    rates = [rate for rate in latest(own, names.throughput).values() if rate > 0]
    return Observation(
        now_s=context.current_time or 0.0,
        outstanding=sum(outstanding.values()) if outstanding else None,
        queued=sum(latest(own, names.queued).values()),
        arrived=latest(reported, names.arrived) or None,
        throughput=sum(rates) / len(rates) if rates else None,
        target=context.target_num_replicas,
        running=context.current_num_replicas,
        least=context.capacity_adjusted_min_replicas,
        most=context.capacity_adjusted_max_replicas,
    )


def live_targets(targets: Targets, reported: Mapping[str, Any], names: _Names) -> Targets:
    """Put what the Routers report in the place of the defaults; where they differ, the largest.

    They differ only while a new `user_config` reaches one after the other.
    """
    work = max(latest(reported, names.target).values(), default=0.0)
    delay_s = max(latest(reported, "target_delay_s").values(), default=targets.delay_s)
    to_zero = min(latest(reported, "scale_to_zero").values(), default=targets.scale_to_zero)
    on_time = max(latest(reported, "on_time").values(), default=targets.on_time)
    return replace(
        targets,
        work_per_replica=work or targets.work_per_replica,
        delay_s=delay_s,
        on_time=on_time,
        scale_to_zero=bool(to_zero),
    )


def latest(metrics: Mapping[str, Any], name: str) -> dict[str, float]:
    """Return the last finite value of a metric from each replica that reports it."""
    series = metrics.get(name, {}).items()
    last = {str(replica): points[-1].value for replica, points in series if points}
    return {replica: value for replica, value in last.items() if math.isfinite(value)}
