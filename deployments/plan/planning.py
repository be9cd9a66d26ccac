"""Plans the towers for some traffic: which policy keeps how much on time, and at what cost."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from deployments.autoscaling import TwoTowerPolicy
from deployments.plan.bound import Bound, clairvoyant
from deployments.plan.load import Load
from deployments.plan.policies import ServeLoop, ServeSettings, request_count, work_based
from deployments.plan.report import BoundReport, ModalityReport, PlanReport, PolicyReport, best
from deployments.plan.simulation import Run
from deployments.plan.tower import Tower
from deployments.plan.traffic import read_trace
from deployments.plan.week import generate_week
from deployments.rehearsal import Targets

OURS, RAY = "work", "request count"
ENOUGH = 0.99
TEXT_TARGETS = Targets(TwoTowerPolicy.TOKENS_PER_REPLICA)
VISION_TARGETS = Targets(TwoTowerPolicy.IMAGES_PER_REPLICA)

Trials = tuple[str, list[str], ServeLoop]
"""A policy's name, its settings in words, and the policy with all of them."""


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What to plan for. Rates are of one busy replica; the defaults are near one H100's.

    Attributes:
        trace: a CSV file; without one, a generated week.
        scale: times the traffic.
        startup_s: from the decision for a replica to its first batch.
        slack_s: what a request may take beyond its own cost at one replica's rate.
        max_queued_tokens: outstanding, above which the Router refuses.
        max_queued_images: the same for images.
        text: targets of our policy for the text tower, `vision` for the vision tower.
        sweep: try both policies over their settings as well.
    """

    trace: Path | None = None
    scale: float = 1.0
    text_rate: float = 600_000.0
    image_rate: float = 430.0
    startup_s: float = 40.0
    slack_s: float = 2.0
    min_replicas: int = 1
    max_replicas: int = 64
    max_batch_tokens: int = 16_384
    max_batch_images: int = 32
    max_images_per_chunk: int = 8
    max_queued_tokens: float = math.inf
    max_queued_images: float = math.inf
    text: Targets = TEXT_TARGETS
    vision: Targets = VISION_TARGETS
    seed: int = 0
    sweep: bool = False

    def towers(self) -> tuple[Tower, Tower]:
        """Return the text and the vision tower to simulate."""
        text = Tower(
            rate=self.text_rate,
            startup_s=self.startup_s,
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


def run(options: PlanOptions) -> PlanReport:
    """Simulate the policies on the traffic.

    Raises:
        ValueError: a trace that cannot be read, or an option that is not positive.
    """
    _check(options)
    if options.trace:
        traffic = read_trace(options.trace, options.scale)
    else:
        traffic = generate_week(options.scale, options.seed)
    text, vision = options.towers()
    parts = (
        ("text", "tokens", traffic.text, text, options.text),
        ("vision", "images", traffic.vision, vision, options.vision),
    )
    return PlanReport(
        traffic=f"{traffic.name}, times {options.scale:g}",
        duration_s=traffic.duration_s,
        objective=f"a request's own cost at one replica's rate plus {options.slack_s:g} s",
        modalities=tuple(_plan(*part, options.sweep) for part in parts if part[2].cost.size),
    )


def _check(options: PlanOptions) -> None:
    for name in ("scale", "text_rate", "image_rate", "max_replicas"):
        if not getattr(options, name) > 0:
            raise ValueError(f"{name} is {getattr(options, name)}; it must be above 0")
    for name in ("startup_s", "slack_s", "min_replicas"):
        if getattr(options, name) < 0:
            raise ValueError(f"{name} is {getattr(options, name)}; it must not be negative")


def _plan(
    name: str, unit: str, load: Load, tower: Tower, targets: Targets, sweep: bool
) -> ModalityReport:
    bound = clairvoyant(load, tower)
    policies = tuple(_tried(load, tower, _defaults(tower, targets)))
    # Where the least replicas always suffice there is nothing to choose.
    trials = _settings(tower, targets, bound) if bound.replicas.max() > tower.min_replicas else ()
    frontier = tuple(_tried(load, tower, trials)) if sweep else ()
    return ModalityReport(
        name=name,
        unit=unit,
        num_requests=load.num_requests,
        num_items=int(load.items.sum()),
        cost=float(load.cost.sum()),
        interval_s=load.duration_s / len(policies[0].replicas),
        policies=policies,
        bound=BoundReport.of(bound),
        frontier=frontier,
        suggestion=_suggestion(policies[0], frontier) if sweep else "",
    )


def _tried(load: Load, tower: Tower, trials: Iterable[Trials]) -> Iterator[PolicyReport]:
    for name, settings, policy in trials:
        run = Run(load, tower, policy, np.full(len(settings), tower.startup_s))
        for place, setting in enumerate(settings):
            yield PolicyReport.of(name, setting, run.outcome(place))


def _defaults(tower: Tower, targets: Targets) -> Iterator[Trials]:
    yield OURS, [describe(targets)], work_based(tower, targets)
    yield RAY, ["Serve's defaults"], request_count(tower)


def describe(targets: Targets) -> str:
    """Return targets as they would be configured."""
    return f"on_time={targets.on_time:g}"


def _settings(tower: Tower, targets: Targets, bound: Bound) -> Iterator[Trials]:
    """Yield both policies over their settings, best reporting interval for the request count.

    The request count is also tried with the highest count capped near what the peak needs, which
    is known only afterwards.
    """
    tried = [
        replace(targets, headroom=headroom, hold_s=hold_s)
        for headroom in (1.0, 1.15, 1.3, 1.5)
        for hold_s in (60.0, 120.0, 300.0)
    ]
    yield OURS, [describe(x) for x in tried], work_based(tower, *tried)
    most = min(math.ceil(int(bound.replicas.max()) * 1.2), tower.max_replicas)
    grid = list(
        product(
            sorted({most, tower.max_replicas}),
            (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 2.0),
            (60.0, 120.0, 600.0),
        )
    )
    settings = [
        f"target={target:g} downscale_delay_s={delay_s:g} max_replicas={most}"
        for most, target, delay_s in grid
    ]
    most, target, delay_s = np.array(grid).T
    yield (
        RAY,
        settings,
        request_count(tower, target, 30.0, 1.0, ServeSettings(0.0, delay_s), most),
    )


def _suggestion(default: PolicyReport, frontier: tuple[PolicyReport, ...]) -> str:
    if not frontier:
        return "the least replicas always suffice: nothing to tune"
    ours = best(frontier, OURS, ENOUGH)
    if ours is None:
        advice = f"no setting keeps {ENOUGH:.0%} of items on time: start replicas faster, keep more"
    else:
        advice = (
            f"the cheapest with {ENOUGH:.0%} on time: {ours.setting}; {_against(ours, frontier)}"
        )
    return f"{advice}\nas configured: {default.setting}; {_against(default, frontier)}"


def _against(ours: PolicyReport, frontier: tuple[PolicyReport, ...]) -> str:
    text = f"{ours.share_on_time:.2%} at {ours.gpu_hours:,.1f} GPU-hours"
    ray = best(frontier, RAY, ours.share_on_time)
    if ray is None:
        return f"{text}; no request-count setting reaches that"
    share = ours.gpu_hours / ray.gpu_hours
    return f"{text}, {share:.2f} of the best request count for as much ({ray.gpu_hours:,.1f})"
