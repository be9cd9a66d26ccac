"""How many replicas each deployment should have, from the work that it has to do.

The decision is pure functions of what was observed, the targets and a small memory; only
`TwoTowerPolicy` knows where Ray Serve keeps the numbers. Serve pickles this module by value into
its controller, so it imports nothing but the standard library.

    replicas = ceil(rate * headroom / throughput + outstanding / target)

and of that the highest of the last `hold_s`. The first term keeps up with what arrives, the second
clears what waits. What is not known never takes a replica away. Routers follow the processor time
that they take.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

ROUTER = "Router"
ROUTER_CORES = 0.7  # of the one core that a Router's event loop can fill
SAMPLE_INTERVAL_S, ROUNDING = 1.0, 1e-9
Context = Any  # Ray's AutoscalingContext


@dataclass(frozen=True)
class Targets:
    """What a replica should have to do; the defaults are those `jina-clip-serve plan` suggests.

    Attributes:
        work_per_replica: tokens or images outstanding for each replica; used while the throughput
            is not known, and always where `delay_s` is 0.
        delay_s: how long clearing what waits may take.
        headroom: capacity over the rate of arrival, which is taken over `window_s`.
        hold_s: how long the highest count of late is kept.
        scale_to_zero: with nothing to do, keep no replica instead of one.
    """

    work_per_replica: float
    delay_s: float = 30.0
    headroom: float = 1.3
    window_s: float = 20.0
    hold_s: float = 120.0
    scale_to_zero: bool = False


class Observation(NamedTuple):
    """What is known of one tower at one moment; costs are tokens or images.

    Attributes:
        now_s: any clock that only goes forward.
        outstanding: admitted and not answered, in all Routers; None where no Router reports.
        queued: in the towers' own queues, which outlive a Router.
        arrived: admitted since its start, of each Router; None where no Router reports.
        throughput: cost per second of a replica that runs batch after batch; None if not measured.
        target: the replicas aimed for now.
    """

    now_s: float
    outstanding: float | None
    queued: float
    arrived: Mapping[str, float] | None
    throughput: float | None
    target: int


class Memory(NamedTuple):
    """What a decision needs of those before it. Serve drops it when an app is deployed anew.

    Attributes:
        totals: the last `arrived` of each Router.
        arrived: the sum of all increases of the totals.
        samples: (time, arrived) over the window.
        peaks: (time, replicas), falling: candidates for the highest count within the hold.
        throughput: the last that was measured.
    """

    totals: Mapping[str, float] | None = None
    arrived: float = 0.0
    samples: tuple[tuple[float, float], ...] = ()
    peaks: tuple[tuple[float, int], ...] = ()
    throughput: float | None = None


def decide(seen: Observation, targets: Targets, memory: Memory) -> tuple[int, Memory]:
    """Return the replicas that a tower should have, and the memory for the next decision."""
    throughput = seen.throughput or memory.throughput
    clear = clearing(seen, targets, throughput)
    if seen.outstanding is None or seen.arrived is None:
        return max(seen.target, math.ceil(clear)), Memory(throughput=throughput)
    memory = record(seen, memory, targets.window_s)._replace(throughput=throughput)
    keep_up = keeping_up(memory, targets)
    at_least = 0 if targets.scale_to_zero else 1
    if keep_up is None:
        keep_up, at_least = 0.0, seen.target
    count = max(math.ceil(keep_up + clear - ROUNDING), at_least)
    peaks = hold(memory.peaks or ((seen.now_s, seen.target),), seen.now_s, count, targets.hold_s)
    return peaks[0][1], memory._replace(peaks=peaks)


def clearing(seen: Observation, targets: Targets, throughput: float | None) -> float:
    """Return the replicas, as a fraction, that clear in time what waits."""
    target = targets.delay_s * (throughput or 0.0) or targets.work_per_replica
    return max(seen.outstanding or 0.0, seen.queued) / target


def keeping_up(memory: Memory, targets: Targets) -> float | None:
    """Return the replicas, as a fraction, that what arrives needs; None if that is not known."""
    (since_s, before), (until_s, arrived) = memory.samples[0], memory.samples[-1]
    if arrived == before:
        return 0.0
    if not memory.throughput:
        return None
    # Before the first sample counts as idle: no spike after a restart; the hold covers it.
    span_s = max(until_s - since_s, targets.window_s)
    return (arrived - before) / span_s * targets.headroom / memory.throughput


def record(seen: Observation, memory: Memory, window_s: float) -> Memory:
    """Add what arrived since the last observation.

    Each Router's own increase is taken: one that appears, or whose count fell because it was
    restarted, adds nothing the first time.
    """
    totals, before = seen.arrived or {}, memory.totals or {}
    gained = sum(max(total - before.get(name, total), 0.0) for name, total in totals.items())
    arrived, samples = memory.arrived + gained, memory.samples
    if not samples or seen.now_s - samples[-1][0] >= SAMPLE_INTERVAL_S:
        samples = (*samples, (seen.now_s, arrived))
        while len(samples) > 1 and samples[1][0] <= seen.now_s - window_s:
            samples = samples[1:]
    return memory._replace(totals=totals, arrived=arrived, samples=samples)


def hold(
    peaks: tuple[tuple[float, int], ...], now_s: float, count: int, hold_s: float
) -> tuple[tuple[float, int], ...]:
    """Add a count to the falling peaks; the first is the highest of the last `hold_s`."""
    kept = [peak for peak in peaks if peak[1] > count and peak[0] >= now_s - hold_s]
    return (*kept, (now_s, count))


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
        self._hold_s = targets.get("hold_s", Targets.hold_s)
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
    peaks, cores = memory.peaks or ((now_s, count),), busy_cores(reported)
    if cores is not None:
        count = max(math.ceil(cores / ROUTER_CORES - ROUNDING), 1)
    peaks = hold(peaks, now_s, count, hold_s)
    return peaks[0][1], memory._replace(peaks=peaks)


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
    )


def live_targets(targets: Targets, reported: Mapping[str, Any], names: _Names) -> Targets:
    """Put what the Routers report in the place of the defaults; where they differ, the largest.

    They differ only while a new `user_config` reaches one after the other.
    """
    work = max(latest(reported, names.target).values(), default=0.0)
    delay_s = max(latest(reported, "target_delay_s").values(), default=targets.delay_s)
    to_zero = min(latest(reported, "scale_to_zero").values(), default=targets.scale_to_zero)
    work = work or targets.work_per_replica
    return replace(targets, work_per_replica=work, delay_s=delay_s, scale_to_zero=bool(to_zero))


def latest(metrics: Mapping[str, Any], name: str) -> dict[str, float]:
    """Return the last finite value of a metric from each replica that reports it."""
    series = metrics.get(name, {}).items()
    last = {str(replica): points[-1].value for replica, points in series if points}
    return {replica: value for replica, value in last.items() if math.isfinite(value)}
