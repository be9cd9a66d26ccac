"""The result of a plan, as plain data, as JSON and as tables for a terminal."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
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
class ModalityReport:
    """One tower: its load, the policies on it, and the least that any policy must pay for.

    Attributes:
        policies: ours with its default settings, then Ray Serve's request count with its own.
        frontier: with `sweep`, both over their settings.
        suggestion: with `sweep`, the cheapest of ours that is on time, and how it compares.
    """

    name: str
    unit: str
    num_requests: int
    num_items: int
    cost: float
    interval_s: float
    policies: tuple[PolicyReport, ...]
    bound: BoundReport
    frontier: tuple[PolicyReport, ...] = ()
    suggestion: str = ""


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


def best(reports: tuple[PolicyReport, ...], name: str, share: float) -> PolicyReport | None:
    """Return the cheapest setting of a policy with at least that share of items on time."""
    enough = [x for x in reports if x.name == name and x.share_on_time >= share]
    return min(enough, key=lambda x: x.gpu_hours, default=None)


def undominated(reports: tuple[PolicyReport, ...]) -> tuple[PolicyReport, ...]:
    """Return, policy by policy, the settings that none betters in both share and GPU-hours."""
    chosen: list[PolicyReport] = []
    for report in sorted(reports, key=lambda x: (x.name, x.gpu_hours, -x.share_on_time)):
        last = chosen[-1] if chosen and chosen[-1].name == report.name else None
        if last is None or report.share_on_time > last.share_on_time:
            chosen.append(report)
    return tuple(chosen)


def thinned(replicas: Ints) -> tuple[int, ...]:
    """Return the highest of each of at most `MAX_POINTS` intervals."""
    step = -(-len(replicas) // MAX_POINTS)
    return tuple(np.maximum.reduceat(replicas, np.arange(0, len(replicas), step)).tolist())


def _render(modality: ModalityReport) -> Iterator[RenderableType]:
    bound = modality.bound
    yield Text(
        f"\n{modality.name}: {modality.num_requests:,} requests, {modality.num_items:,} items, "
        f"{modality.cost:,.0f} {modality.unit}; the peak needs {bound.peak_replicas} replicas"
    )
    yield _table(modality.policies, bound)
    for policy in modality.policies:
        yield Text(f"{policy.name}: {policy.setting}", style="dim")
    for policy in modality.policies:
        yield Text(f"{policy.name:>16} {_spark(policy.replicas)} to {max(policy.replicas)}")
    yield Text(f"{'bound':>16} {_spark(bound.replicas)} to {bound.peak_replicas}")
    if modality.frontier:
        yield Text(f"\nthe best of {len(modality.frontier)} settings tried")
        shown = undominated(modality.frontier)
        yield _table(shown, bound)
        for policy in shown:
            yield Text(f"{policy.name}: {policy.setting}", style="dim")
    if modality.suggestion:
        yield Text(modality.suggestion)


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
