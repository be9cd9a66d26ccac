"""Does the simulation of `jina-clip-serve plan` say how many replicas there will be?

    python -m benchmarks.simulation --trace FILE [--minutes 10] [--speedup N] [--plot PNG] [--json]

A trace is run faster, with as many requests less and by a swell that brings most of them in the
middle, so that replicas come and go, against Ray Serve with make-believe GPUs, one for
each tower replica, and towers that keep the pace of slow ones. The same requests at the same times
are simulated, with the start-up time that the replicas took. Both counts are laid side by side.
"""

import asyncio
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import h100, report
from benchmarks.harness.load import Generator
from benchmarks.harness.mixes import MAX_TRACE_TOKENS, TOKENS_PER_WORD, call, distinct_images, text
from benchmarks.harness.outcomes import tally
from benchmarks.harness.sampler import Sampler
from benchmarks.harness.servers import paced_towers
from benchmarks.scaling import serve_with_gpus
from deployments.config import AppConfig
from deployments.plan.load import Floats, Load
from deployments.plan.policies import work_based
from deployments.plan.simulation import Outcome, simulate
from deployments.plan.tower import Tower
from deployments.plan.traffic import read_trace
from deployments.rehearsal import Targets

MAX_REPLICAS = 6
PACES = {"TextTower": 3000.0, "VisionTower": 8.0}  # tokens and images per second of a replica
LOOK_S = 0.5
LEAST = 0.1  # of the requests, at the beginning and the end
TOWER = {
    "num_cpus": 0.1,
    "num_gpus": 1,
    "scaling": {"min_replicas": 1, "max_replicas": MAX_REPLICAS},
}
CONFIG = AppConfig.model_validate(
    {
        "text": TOWER,
        "vision": TOWER,
        "router": {"num_cpus": 0.1, "cache_bytes": 0},
        "policy": {"startup_s": 10},
    }
)
Counts = Mapping[str, tuple[int, int]]  # by tower: that are there, and that run


@dataclass(frozen=True)
class Course:
    """Replicas of one tower over time.

    Attributes:
        at_s: seconds, float64 [looks].
        paid: starting and running, float64 [looks]; `running` of them.
    """

    at_s: Floats
    paid: Floats
    running: Floats

    @classmethod
    def of(cls, samples: Sequence[tuple[float, Counts]], name: str) -> "Course":
        """Pick one tower's from what was seen."""
        rows = [(at_s, *counts[name]) for at_s, counts in samples]
        return cls(*np.array(rows, dtype=np.float64).T)

    @classmethod
    def simulated(cls, outcome: Outcome) -> "Course":
        """Return what a simulation has had in each second."""
        paid, running = outcome.replicas, outcome.serving
        at_s = np.arange(len(paid), dtype=np.float64)
        return cls(at_s, paid.astype(np.float64), running.astype(np.float64))

    def replica_s(self, counts: Floats) -> float:
        """Return the replica-seconds of a count; the last look counts as the one before."""
        steps_s = np.diff(self.at_s)
        return float((counts * np.append(steps_s, steps_s[-1])).sum())

    @property
    def startup_s(self) -> float:
        """The mean time of a start: replica-seconds of those that start, for each; 0 for none."""
        starts = np.maximum(np.diff(self.paid), 0).sum()
        return self.replica_s(self.paid - self.running) / starts if starts else 0.0


def counts() -> Counts:
    """Return the replicas of each tower."""
    from ray import serve

    deployments = serve.status().applications["embeddings"].deployments
    told = {name: deployments[name].replica_states.items() for name in PACES}
    states = {name: {str(state): n for state, n in found} for name, found in told.items()}
    return {
        name: (sum(n for x, n in found.items() if x != "STOPPING"), found.get("RUNNING", 0))
        for name, found in states.items()
    }


def thinned(load: Load, seconds: float, speedup: float) -> Load:
    """Let a load pass faster, and take from a tenth to all of one request in `speedup`."""
    at_s = load.arrival_s / speedup
    swell = LEAST + (1 - LEAST) * np.sin(np.pi * at_s / seconds) ** 4
    taken = np.random.default_rng(0).random(len(at_s)) < swell / speedup
    taken &= at_s < seconds
    cost = np.minimum(load.cost[taken], MAX_TRACE_TOKENS)
    return Load.of(at_s[taken], cost, np.ones(len(cost)), seconds)


def bodies(load: Load, name: str) -> Iterator[Any]:
    """Yield the requests of a load: a text of so many tokens, or so many images."""
    chance, images = random.Random(0), distinct_images()
    for cost in load.cost.astype(int).tolist():
        words = max(1, round(cost / TOKENS_PER_WORD))
        texts = name == "TextTower"
        items = [text(chance, words)] if texts else [{"image": next(images)} for _ in range(cost)]
        yield call(name, items, "base64", False)


def measure(path: Path, seconds: float, speedup: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run and simulate; return what to tell, and both courses of each tower."""
    traffic = read_trace(path)
    loads = {
        "TextTower": thinned(traffic.text, seconds, speedup),
        "VisionTower": thinned(traffic.vision, seconds, speedup),
    }
    os.environ[h100.IMAGES_PER_S_VARIABLE] = str(PACES["VisionTower"])
    os.environ[h100.TEXT_TOKENS_PER_S_VARIABLE] = str(PACES["TextTower"])
    with serve_with_gpus(2 * MAX_REPLICAS) as url, paced_towers():
        from serve_app.launch import launch

        launch(CONFIG)
        generators = {name: Generator(url, bodies(loads[name], name)) for name in loads}

        async def send() -> None:
            await asyncio.gather(
                *(generators[name].open(iter(loads[name].arrival_s.tolist())) for name in loads)
            )

        report.progress(f"{sum(len(x.cost) for x in loads.values()):,} requests")
        with Sampler(counts, LOOK_S) as sampler:
            asyncio.run(send())
    results, courses = {}, {}
    for name, load in loads.items():
        real = Course.of([x for x in sampler.samples if x[0] < seconds], name)
        told, simulated = simulation(load, name, real.startup_s or CONFIG.policy.startup_s)
        courses[name] = real, simulated
        results[name] = {
            "outcomes": tally(generators[name].outcomes),
            "startup_s": round(real.startup_s, 1),
            "replica_s": round(real.replica_s(real.paid)),
            "simulated": round(simulated.replica_s(simulated.paid)),
            "ratio": round(simulated.replica_s(simulated.paid) / real.replica_s(real.paid), 3),
            "most": (int(real.paid.max()), int(simulated.paid.max())),
            "simulated_on_time": round(told.share_on_time, 4),
        }
    return results | {"load_average": os.getloadavg()}, courses


def simulation(load: Load, name: str, startup_s: float) -> tuple[Outcome, Course]:
    """Simulate one tower as the service runs it."""
    router, is_text = CONFIG.router, name == "TextTower"
    tower = Tower(
        PACES[name],
        startup_s,
        piece=router.max_tokens_per_chunk if is_text else router.max_images_per_chunk,
        max_queued=router.max_queued_tokens if is_text else router.max_queued_images,
        max_replicas=MAX_REPLICAS,
    )
    live = CONFIG.targets
    work = live.target_tokens_per_replica if is_text else live.target_images_per_replica
    targets = Targets(work, on_time=live.on_time, startup_s=CONFIG.policy.startup_s)
    outcome = simulate(load, tower, work_based(tower, targets), warm_up_s=0.0)
    return outcome, Course.simulated(outcome)


def draw(courses: Mapping[str, tuple[Course, Course]], path: Path) -> None:
    """Draw both counts of each tower over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    for axes, (name, both) in zip(figure.subplots(len(courses)), courses.items(), strict=True):
        for course, label in zip(both, ("Ray Serve", "simulated"), strict=True):
            axes.step(course.at_s, course.paid, where="post", label=label)
        axes.set(ylabel=f"{name}: replicas", ylim=(0, MAX_REPLICAS + 0.5))
        axes.legend(frameon=False, loc="upper right")
    axes.set_xlabel("seconds")
    figure.savefig(path, dpi=150, format="png")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = report.command(__doc__)
    parser.add_argument("--trace", type=Path, required=True, help="CSV with time, tokens, images")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--speedup", type=float, default=144, help="a day in ten minutes")
    parser.add_argument("--plot", type=Path, help="draw both counts to a PNG")
    options = parser.parse_args(arguments)
    results, courses = measure(options.trace, 60 * options.minutes, options.speedup)
    if options.plot:
        draw(courses, options.plot)
    report.write(options, results, report.show_values)


if __name__ == "__main__":
    main()
