"""Does a request fail when replicas are killed, updated and reloaded under load?

    python -m benchmarks.chaos [--minutes 10] [--rate 8] [--json]

Runs two Routers and two replicas of each tower, lets callers ask at a steady rate, and meanwhile
kills a tower replica every 20 s and a Router every 60 s, rolls out other limits after a third of
the time and another copy of the model after two thirds. It ends with code 1 if a request failed
that was not on a connection of a Router that was killed.
"""

import os
import random
import re
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from benchmarks.harness import report
from benchmarks.harness.callers import asking
from benchmarks.harness.outcomes import Outcome, quantile, tally
from benchmarks.harness.processes import OTHER, descendants, kind, of_kind, resident_bytes
from benchmarks.harness.sampler import Sampler, seconds_until
from benchmarks.harness.servers import Proxy, service
from deployments.config import AppConfig
from deployments.errors import ServiceError
from deployments.model.weights.source import DEMO

TOWER_KILL_S = 20
ROUTER_KILL_S = 60
SETTLE_S = 5  # of load before the first fault
ROLLOUT_S = 180
CLOSING_S = 0.1  # for which HAProxy may still use a killed Router's open connections
AFTER_KILL_S = 2.0  # within which a request on such a connection has ended
WATCH_S = 5
WINDOW_S = 60  # in which memory is compared: the first and the last minute
MIXES = 6 * ["query"] + 2 * ["32 texts"] + ["7 texts + 2 images", "1 image"]
ROUTER: dict[str, Any] = {"num_replicas": 2, "num_cpus": 0.25, "cache_bytes": 0}
SETTINGS: dict[str, Any] = {
    "text": {"num_replicas": 2, "num_cpus": 0.25},
    "vision": {"num_replicas": 2, "num_cpus": 0.25, "decode_threads": 2},
    "router": ROUTER,
}
LIMITS = {"router": ROUTER | {"max_items_per_request": 4096, "max_images_per_chunk": 4}}
RETRIES = re.compile(r"^ray_jina_clip_retries_total\{(.*?)\} (\S+)$", re.MULTILINE)
TOWER = re.compile(r'tower="(\w+)"')
MIB = 1024 * 1024


class Chaos:
    """Breaks a running service on a schedule, and notes what it did and when."""

    def __init__(self, begin_s: float, folder: Path) -> None:
        self.router_kills_s: list[float] = []
        self.done: list[str] = []
        self.stuck: list[str] = []
        self._begin_s = begin_s
        self._folder = folder
        self._chance = random.Random(2)
        self._rollouts: list[threading.Thread] = []

    def run(self, seconds: float) -> None:
        """Break things until the time is over, and wait for the rollouts."""
        plan: list[tuple[float, Callable[[], None]]] = [
            (seconds / 3, self._update),
            (seconds * 2 / 3, self._reload),
        ]
        plan += [(at, self._kill_router) for at in _times(ROUTER_KILL_S, seconds)]
        plan += [(at, self._kill_tower) for at in _times(TOWER_KILL_S, seconds)]
        for at_s, act in sorted(plan, key=lambda entry: entry[0]):
            time.sleep(max(0.0, self._begin_s + at_s - time.monotonic()))
            act()
        for rollout in self._rollouts:
            rollout.join()

    def _kill_tower(self) -> None:
        self._kill(self._chance.choice(("TextTower", "VisionTower")))

    def _kill_router(self) -> None:
        self.router_kills_s.append(time.monotonic())
        self._kill("Router")

    def _kill(self, kind: str) -> None:
        replicas = of_kind(os.getpid(), kind)
        if not replicas:  # the last one was killed before another had started
            self._note(f"there was no {kind} to kill")
            return
        self._chance.choice(replicas).kill()
        self._note(f"killed a {kind}, 1 of {len(replicas)}")

    def _update(self) -> None:
        self._roll_out("other limits", SETTINGS | LIMITS)

    def _reload(self) -> None:
        shutil.copytree(DEMO, self._folder / "checkpoint")
        model = {"source": str(self._folder / "checkpoint"), "name": "jina-clip-demo"}
        self._roll_out("another copy of the model", SETTINGS | LIMITS | {"model": model})

    def _roll_out(self, what: str, settings: Mapping[str, Any]) -> None:
        def roll_out() -> None:
            from serve_app.launch import launch

            with suppress(ServiceError):  # a replica is killed while it waits
                launch(AppConfig.model_validate(settings))
            if seconds_until(_all_run, ROLLOUT_S) is None:
                self.stuck.append(what)
            self._note(f"rolled out {what}{': NOT DONE' if what in self.stuck else ''}")

        self._note(f"rolling out {what}")
        self._rollouts.append(threading.Thread(target=roll_out))
        self._rollouts[-1].start()

    def _note(self, what: str) -> None:
        line = f"{time.monotonic() - self._begin_s:6.1f} s: {what}"
        report.progress(line)
        self.done.append(line)


def _all_run() -> bool:
    from ray import serve

    return serve.status().applications["embeddings"].status == "RUNNING"


def _times(period_s: float, seconds: float) -> list[float]:
    """Return multiples of a period that leave time to recover."""
    return [n * period_s for n in range(1, int((seconds - 1) // period_s) + 1)]


def verdict(outcomes: Sequence[Outcome], router_kills_s: Sequence[float]) -> dict[str, Any]:
    """Count what became of the requests; failures while a Router was killed stand apart."""
    answered = [x for x in outcomes if x.is_right]
    lost = [x for x in outcomes if not x.is_right and x.status != 429]
    apart = [x for x in lost if any(_was_open(x, kill_s) for kill_s in router_kills_s)]
    latencies_s = [x.latency_s for x in answered]
    ends = sorted(x.ended_s for x in answered)
    return {
        "requests": len(outcomes),
        "answered": len(answered),
        "refused": sum(x.status == 429 for x in outcomes),
        "failed": tally([x for x in lost if x not in apart]),
        "on a killed Router": tally(apart),
        "p50_s": quantile(0.5, latencies_s),
        "p99_s": quantile(0.99, latencies_s),
        "longest_s": max(latencies_s),
        "longest_gap_s": max(after - before for before, after in pairwise(ends)),
    }


def _was_open(outcome: Outcome, kill_s: float) -> bool:
    """Tell whether a request was under way when a Router was killed, and ended by that."""
    was_sent = outcome.sent_s <= kill_s + CLOSING_S
    return was_sent and kill_s <= outcome.ended_s <= kill_s + AFTER_KILL_S


Memory = dict[tuple[str, int], float]  # MiB, by kind and process


class Watch:
    """What is seen from outside: memory by process, and the Routers' retries."""

    def __init__(self) -> None:
        self._retries: dict[str, float] = {}

    def look(self) -> Memory:
        """Return the memory of the service's processes now, and note the retries."""
        with suppress(httpx.HTTPError):
            self._count_retries()
        below = [(kind(process), process) for process in descendants(os.getpid())]
        return {
            (name, process.pid): resident_bytes([process]) / MIB
            for name, process in below
            if name != OTHER
        }

    def _count_retries(self) -> None:
        """Keep the highest count of each Router, since a killed one's disappears."""
        import ray

        for node in ray.nodes():
            url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            for labels, value in RETRIES.findall(httpx.get(url, timeout=5).text):
                self._retries[labels] = max(self._retries.get(labels, 0.0), float(value))

    def retries(self) -> dict[str, int]:
        """Return the chunks sent once more, by tower."""
        total: Counter[str] = Counter()
        for labels, value in self._retries.items():
            found = TOWER.search(labels)
            total[found[1] if found else ""] += int(value)
        return dict(total)


def memory_mib(samples: Sequence[tuple[float, Memory]]) -> dict[str, dict[str, Any]]:
    """Return, by kind, the median process in the first and the last minute.

    A process is also compared with itself, where one lived through both minutes.
    """
    early = by_process([x for at_s, x in samples if at_s <= samples[0][0] + WINDOW_S])
    late = by_process([x for at_s, x in samples if at_s >= samples[-1][0] - WINDOW_S])
    both = early.keys() & late.keys()
    return {
        name: {
            "first": median_of(early, name),
            "last": median_of(late, name),
            "growth of those alive in both": [
                round(late[key] - early[key]) for key in both if key[0] == name
            ],
        }
        for name in sorted({name for name, _ in (*early, *late)})
    }


def by_process(samples: Sequence[Memory]) -> Memory:
    """Return each process's median."""
    held: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for sample in samples:
        for key, mib in sample.items():
            held[key].append(mib)
    return {key: statistics.median(values) for key, values in held.items()}


def median_of(memory: Memory, name: str) -> int | None:
    """Return the median process of a kind; None where there is none."""
    values = [mib for (kind_of_it, _), mib in memory.items() if kind_of_it == name]
    return round(statistics.median(values)) if values else None


def measure(minutes: float, per_s: float, proxy: Proxy) -> dict[str, Any]:
    """Start the service, break it under load, and count."""
    # As on a cluster, where new versions are rolled out. By the setting of `up`, which ends where
    # nothing starts, Serve gives a version up whose first two replicas are killed at their start.
    os.environ["RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT"] = "3"
    seconds, watch = 60 * minutes, Watch()
    load = MIXES, seconds + SETTLE_S, "--rate", str(per_s), "--check"
    with (
        tempfile.TemporaryDirectory() as folder,
        service(AppConfig.model_validate(SETTINGS), proxy) as url,
        asking(url, *load) as wait,
    ):
        time.sleep(SETTLE_S)
        chaos = Chaos(time.monotonic(), Path(folder))
        with Sampler(watch.look, WATCH_S) as sampler:
            chaos.run(seconds)
            outcomes = wait()
    return {
        **verdict(outcomes, chaos.router_kills_s),
        "retries": watch.retries(),
        "memory_mib": memory_mib(sampler.samples),
        "events": chaos.done,
        "rollouts not done": chaos.stuck,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line; end with code 1 where a request failed that should not."""
    parser = report.command(__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=8, help="requests per second")
    parser.add_argument("--proxy", choices=("haproxy", "stock"), default="haproxy")
    options = parser.parse_args(arguments)
    results = measure(options.minutes, options.rate, options.proxy)
    report.write(options, results, report.show_values)
    sys.exit(1 if results["failed"] or results["rollouts not done"] else 0)


if __name__ == "__main__":
    main()
