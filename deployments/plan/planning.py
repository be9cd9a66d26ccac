"""Plans the towers for some traffic: which policy keeps how much on time, and at what cost."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from deployments.autoscaling import TwoTowerPolicy
from deployments.plan.bound import clairvoyant
from deployments.plan.bursts import generate_bursts
from deployments.plan.load import Floats, Load
from deployments.plan.policies import request_count, work_based
from deployments.plan.report import (
    BoundReport,
    ModalityReport,
    PlanReport,
    PolicyReport,
    Standing,
    StartReport,
    best,
)
from deployments.plan.rivals import Rival, rivals
from deployments.plan.simulation import Run
from deployments.plan.tower import Tower, delays
from deployments.plan.traffic import Traffic, read_trace
from deployments.plan.week import generate_week
from deployments.rehearsal import Targets

OURS = "rehearsed"
STARTUPS_S = (20.0, 40.0, 120.0)
"""Tried against all: weights on a local disk, the default, a new machine."""
STANDING_SHARES = (0.95, 0.99, 0.999)


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What to plan for. Rates are of one busy replica; the defaults are near one H100's.

    Attributes:
        trace: a CSV file; without one, traffic is generated.
        scale: times the traffic.
        startups_s: from the decision for a replica to its first batch; each is planned for.
        on_time: share wanted of our policy, `targets.on_time`.
        slack_s: what a request may take beyond its own cost at one replica's rate.
        max_queued_tokens: outstanding, above which the Router refuses.
        max_queued_images: the same for images.
        against: Ray Serve's defaults, or all policies over their settings.
    """

    trace: Path | None = None
    generated: Literal["week", "bursts"] = "week"
    scale: float = 1.0
    text_rate: float = 600_000.0
    image_rate: float = 430.0
    startups_s: tuple[float, ...] = (40.0,)
    on_time: float = Targets.on_time
    slack_s: float = 2.0
    min_replicas: int = 1
    max_replicas: int = 64
    max_batch_tokens: int = 16_384
    max_batch_images: int = 32
    max_images_per_chunk: int = 8
    max_queued_tokens: float = math.inf
    max_queued_images: float = math.inf
    seed: int = 0
    against: Literal["defaults", "all"] = "defaults"

    def towers(self) -> tuple[Tower, Tower]:
        """Return the text and the vision tower to simulate."""
        text = Tower(
            rate=self.text_rate,
            startup_s=self.startups_s[0],
            batch=self.max_batch_tokens,
            max_queued=self.max_queued_tokens,
            min_replicas=self.min_replicas,
            max_replicas=self.max_replicas,
            slack_s=self.slack_s,
        )
        vision = replace(
            text,
            rate=self.image_rate,
            piece=self.max_images_per_chunk,
            batch=self.max_batch_images,
            max_queued=self.max_queued_images,
        )
        return text, vision

    def traffic(self) -> Traffic:
        """Return the trace, or what is generated in its place."""
        if self.trace:
            return read_trace(self.trace, self.scale)
        generate = generate_week if self.generated == "week" else generate_bursts
        return generate(self.scale, self.seed)


def run(options: PlanOptions) -> PlanReport:
    """Simulate the policies on the traffic.

    Raises:
        ValueError: a trace that cannot be read, or an option that is not positive.
    """
    _check(options)
    traffic = options.traffic()
    text, vision = options.towers()
    parts = (
        ("text", "tokens", traffic.text, text, TwoTowerPolicy.TOKENS_PER_REPLICA),
        ("vision", "images", traffic.vision, vision, TwoTowerPolicy.IMAGES_PER_REPLICA),
    )
    return PlanReport(
        traffic=f"{traffic.name}, times {options.scale:g}",
        duration_s=traffic.duration_s,
        objective=f"a request's own cost at one replica's rate plus {options.slack_s:g} s",
        modalities=tuple(_plan(*part, options) for part in parts if part[2].cost.size),
    )


def _check(options: PlanOptions) -> None:
    for name in ("scale", "text_rate", "image_rate", "max_replicas"):
        if not getattr(options, name) > 0:
            raise ValueError(f"{name} is {getattr(options, name)}; it must be above 0")
    for name, least in (("slack_s", options.slack_s), ("min_replicas", options.min_replicas)):
        if least < 0:
            raise ValueError(f"{name} is {least}; it must not be negative")
    for startup_s in options.startups_s:
        if not startup_s >= 1:
            raise ValueError(f"a start-up of {startup_s:g} s is too short; 1 s is the least")


def _plan(
    name: str, unit: str, load: Load, tower: Tower, work_per_replica: float, options: PlanOptions
) -> ModalityReport:
    starts_s = options.startups_s
    targets = Targets(work_per_replica, on_time=options.on_time)
    mine = _ours(load, tower, targets, starts_s)
    tried: list[tuple[PolicyReport, ...]] = [() for _ in starts_s]
    for rival in _rivals(load, tower, options):
        found = _tried(load, tower, rival, starts_s)
        tried = [(*before, *new) for before, new in zip(tried, found, strict=True)]
    late = any(policy.share_on_time < options.on_time for policy in mine)
    sooner: Sequence[PolicyReport | None] = [None] * len(starts_s)
    if late:
        halves_s = tuple(startup_s / 2 for startup_s in starts_s)
        sooner = [x.without_series() for x in _ours(load, tower, targets, halves_s)]
    return ModalityReport(
        name=name,
        unit=unit,
        num_requests=load.num_requests,
        num_items=int(load.items.sum()),
        cost=float(load.cost.sum()),
        interval_s=load.duration_s / max(len(mine[0].replicas), 1),
        starts=tuple(
            StartReport(
                startup_s,
                BoundReport.of(clairvoyant(load, replace(tower, startup_s=startup_s))),
                (mine[place], *best(tried[place], options.on_time)),
                tuple(policy.without_series() for policy in tried[place]),
                sooner[place],
            )
            for place, startup_s in enumerate(starts_s)
        ),
        standing=tuple(standing(load, tower, STANDING_SHARES)) if late else (),
    )


def _ours(
    load: Load, tower: Tower, targets: Targets, starts_s: tuple[float, ...]
) -> list[PolicyReport]:
    policy = work_based(tower, *[targets] * len(starts_s))
    ours = Rival(OURS, [f"on_time={targets.on_time:g}"], policy)
    return [only for (only,) in _tried(load, tower, ours, starts_s)]


def _rivals(load: Load, tower: Tower, options: PlanOptions) -> Iterable[Rival]:
    if options.against == "defaults":
        return [Rival("Ray count", ["Serve's defaults"], request_count(tower))]
    mean_cost = float(load.cost.sum() / load.number.sum())
    return rivals(tower, mean_cost, len(options.startups_s))


def _tried(
    load: Load, tower: Tower, rival: Rival, starts_s: tuple[float, ...]
) -> list[tuple[PolicyReport, ...]]:
    """Return, for each start-up, a report of each setting."""
    count = len(set(rival.settings))
    done = Run(load, tower, rival.policy, np.repeat(starts_s, count))
    return [
        tuple(
            PolicyReport.of(rival.name, rival.settings[place], done.outcome(first + place))
            for place in range(count)
        )
        for first in range(0, count * len(starts_s), count)
    ]


def standing(load: Load, tower: Tower, shares: Iterable[float]) -> Iterable[Standing]:
    """Yield the fewest replicas, always there, that keep each share of items on time."""
    seconds = max(math.ceil(load.duration_s), 1)
    known: dict[int, float] = {}

    def share(replicas: int) -> float:
        if replicas not in known:
            serving = np.full(seconds, replicas, np.int64)
            nothing = np.zeros(len(load.cost), np.bool_)
            delay_s: Floats = delays(load, tower, serving, 0, nothing)
            on_time = load.items[delay_s <= tower.slack_s].sum()
            known[replicas] = float(on_time / load.items.sum())
        return known[replicas]

    for wanted in shares:
        low, high = 1, 1
        while share(high) < wanted:
            low, high = high + 1, high * 2
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if share(middle) >= wanted else (middle + 1, high)
        yield Standing(wanted, low, low * seconds / 3600)
