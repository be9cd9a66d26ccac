"""The result of a plan, as plain data, as JSON and as tables for a terminal."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deployments.plan.bound import Bound
from deployments.plan.simulation import Outcome
from deployments.plan.tower import Ints

MAX_POINTS = 1008
"""Points of a series of replicas: ten minutes each for a week."""
SPARK_WIDTH = 54
SPARKS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class PolicyReport:
    """How one policy served a tower's load.

    Attributes:
        delay_s: p50, p95 and p99 over items of what a request took beyond its own cost.
        replicas: the most paid for in each interval of `ModalityReport.interval_s`.
    """

    name: str
    setting: str
    gpu_hours: float
    share_on_time: float
    delay_s: tuple[float, float, float]
    num_refused: int
    replicas: tuple[int, ...]

    @classmethod
    def of(cls, name: str, setting: str, outcome: Outcome) -> "PolicyReport":
        """Sum an outcome up."""
        return cls(
            name=name,
            setting=setting,
            gpu_hours=outcome.gpu_hours,
            share_on_time=outcome.share_on_time,
            delay_s=outcome.delay_percentiles_s(),
            num_refused=outcome.num_refused,
            replicas=thinned(outcome.replicas),
        )

    def without_series(self) -> "PolicyReport":
        """Return it without its replicas over time."""
        return replace(self, replicas=())


@dataclass(frozen=True, slots=True)
class BoundReport:
    """The clairvoyant lower bound: every item on time."""

    gpu_hours: float
    work_gpu_hours: float
    peak_replicas: int
    replicas: tuple[int, ...]

    @classmethod
    def of(cls, bound: Bound) -> "BoundReport":
        """Sum a bound up."""
        peak = int(bound.replicas.max())
        return cls(bound.gpu_hours, bound.work_gpu_hours, peak, thinned(bound.replicas))


@dataclass(frozen=True, slots=True)
class StartReport:
    """The policies where a replica takes so long to start.

    Attributes:
        policies: ours, then of each other the cheapest setting with the share on time that is
            wanted, or where there is none, the one with the largest share.
        tried: all settings of the others.
        sooner: ours, where a replica starts in half the time; None where it is not late.
    """

    startup_s: float
    bound: BoundReport
    policies: tuple[PolicyReport, ...]
    tried: tuple[PolicyReport, ...]
    sooner: PolicyReport | None


@dataclass(frozen=True, slots=True)
class Standing:
    """The fewest replicas, always there, that keep a share of items on time."""

    share: float
    replicas: int
    gpu_hours: float


@dataclass(frozen=True, slots=True)
class ModalityReport:
    """One tower: its load, and what serving it takes.

    Attributes:
        starts: for each start-up time.
        standing: where ours is late more than wanted: what a standing capacity needs.
    """

    name: str
    unit: str
    num_requests: int
    num_items: int
    cost: float
    interval_s: float
    starts: tuple[StartReport, ...]
    standing: tuple[Standing, ...]


@dataclass(frozen=True, slots=True)
class PlanReport:
    """A plan: the traffic, and each tower that has any."""

    traffic: str
    duration_s: float
    objective: str
    modalities: tuple[ModalityReport, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain dictionaries, lists, numbers and strings."""
        return asdict(self)

    def __rich__(self) -> RenderableType:
        parts = [part for modality in self.modalities for part in _render(modality)]
        head = f"{self.traffic}: {self.duration_s / 3600:,.1f} h. On time: {self.objective}."
        return Group(Text(head, style="bold"), *parts)


def best(tried: tuple[PolicyReport, ...], share: float) -> tuple[PolicyReport, ...]:
    """Return each policy's cheapest setting with the share, or else the one most on time."""
    chosen: dict[str, PolicyReport] = {}
    for report in tried:
        rank = max(share - report.share_on_time, 0.0), report.gpu_hours
        other = chosen.get(report.name)
        if other is None or rank < (max(share - other.share_on_time, 0.0), other.gpu_hours):
            chosen[report.name] = report
    return tuple(chosen.values())


def thinned(replicas: Ints) -> tuple[int, ...]:
    """Return the highest of each of at most `MAX_POINTS` intervals."""
    step = -(-len(replicas) // MAX_POINTS)
    return tuple(np.maximum.reduceat(replicas, np.arange(0, len(replicas), step)).tolist())


def _render(modality: ModalityReport) -> Iterator[RenderableType]:
    yield Text(
        f"\n{modality.name}: {modality.num_requests:,} requests, {modality.num_items:,} items, "
        f"{modality.cost:,.0f} {modality.unit}"
    )
    for start in modality.starts:
        bound = start.bound
        yield Text(
            f"\na replica starts in {start.startup_s:g} s; the peak needs {bound.peak_replicas}"
        )
        yield _table(start.policies, bound)
        for policy in start.policies:
            yield Text(f"{policy.name}: {policy.setting}", style="dim")
        if start.sooner:
            yield Text(
                f"{start.policies[0].name} with a start-up of {start.startup_s / 2:g} s: "
                f"{start.sooner.share_on_time:.2%} at {start.sooner.gpu_hours:,.1f} GPU-hours",
                style="dim",
            )
    start = modality.starts[0]
    for policy in start.policies:
        yield Text(f"{policy.name:>16} {_spark(policy.replicas)} to {max(policy.replicas)}")
    yield Text(f"{'bound':>16} {_spark(start.bound.replicas)} to {start.bound.peak_replicas}")
    if modality.standing:
        yield Text("work comes faster than replicas start; replicas that are always there:")
        for each in modality.standing:
            yield Text(
                f"  {each.share:.1%} on time: {each.replicas}, {each.gpu_hours:,.1f} GPU-hours"
            )


def _table(policies: tuple[PolicyReport, ...], bound: BoundReport) -> Table:
    """A table of at most 80 columns; settings are told below it."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("policy")
    for name in ("on time", "GPU-hours", "of bound", "p50", "p95", "p99", "refused"):
        table.add_column(name, justify="right", no_wrap=True)
    for policy in policies:
        table.add_row(
            policy.name,
            f"{policy.share_on_time:.2%}",
            f"{policy.gpu_hours:,.1f}",
            f"{policy.gpu_hours / bound.gpu_hours:.2f}x",
            *(f"{delay_s:.1f} s" for delay_s in policy.delay_s),
            f"{policy.num_refused:,}",
        )
    table.add_row("bound", "100%", f"{bound.gpu_hours:,.1f}", "1.00x")
    table.add_row("work alone", "", f"{bound.work_gpu_hours:,.1f}")
    return table


def _spark(replicas: tuple[int, ...]) -> str:
    parts = np.array_split(np.array(replicas), min(SPARK_WIDTH, len(replicas)))
    high = max(*replicas, 1)
    return "".join(SPARKS[round(int(part.max()) / high * (len(SPARKS) - 1))] for part in parts)
