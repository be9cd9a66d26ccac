"""Does a request fail when replicas are killed, updated and reloaded under load?

`python -m benchmarks.chaos [--minutes 10] [--json]` starts the service on this machine with two
Routers and two replicas of each tower, lets callers ask at a steady rate from another process, and
meanwhile kills a tower replica every 20 s and a Router every 60 s, rolls out other limits after a
third of the time and another copy of the model after two thirds. It ends with code 1 if a request
failed that was not on a connection of a Router that was killed.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.chaos_load import Outcome
from benchmarks.chaos_watch import Watch
from benchmarks.harness.callers import callers, seconds_until, tally
from benchmarks.harness.processes import of_kind
from deployments.config import AppConfig
from deployments.errors import ServiceError
from deployments.model.weights.source import DEMO
from serve_app.server import HAPROXY_PORTS, Ingress, free_port, prepare_environment, running

TOWER_KILL_S = 20
ROUTER_KILL_S = 60
SETTLE_S = 5  # of load before the first fault
ROLLOUT_S = 180
CLOSING_S = 0.1  # for which HAProxy may still use a killed Router's open connections
AFTER_KILL_S = 2.0  # within which a request on such a connection has ended
SETTINGS: dict[str, Any] = {
    "text": {"num_replicas": 2, "num_cpus": 0.25},
    "vision": {"num_replicas": 2, "num_cpus": 0.25, "decode_threads": 2},
    "router": {"num_replicas": 2, "num_cpus": 0.25},
}
LIMITS = {"router": SETTINGS["router"] | {"max_items_per_request": 4096, "max_images_per_chunk": 4}}


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
        victim = self._chance.choice(replicas)
        victim.kill()
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
        print(line, file=sys.stderr, flush=True)
        self.done.append(line)


def _all_run() -> bool:
    from ray import serve

    return serve.status().applications["embeddings"].status == "RUNNING"


def _times(period_s: float, seconds: float) -> list[float]:
    """Return multiples of a period that leave time to recover."""
    return [n * period_s for n in range(1, int((seconds - 1) // period_s) + 1)]


def verdict(outcomes: Sequence[Outcome], router_kills_s: Sequence[float]) -> dict[str, Any]:
    """Count what became of the requests; failures while a Router was killed stand apart."""
    answered = [x for x in outcomes if x.status == 200 and not x.code]
    lost = [x for x in outcomes if x.status not in (200, 429) or (x.status == 200 and x.code)]
    apart = [x for x in lost if any(_was_open(x, kill_s) for kill_s in router_kills_s)]
    latencies = sorted(x.ended_s - x.sent_s for x in answered)
    ends = sorted(x.ended_s for x in answered)
    gaps = [after - before for before, after in pairwise(ends)]
    return {
        "requests": len(outcomes),
        "answered": len(answered),
        "refused": sum(x.status == 429 for x in outcomes),
        "failed": tally([x for x in lost if x not in apart]),
        "on a killed Router": tally(apart),
        "p50_s": round(statistics.median(latencies), 3),
        "p99_s": round(latencies[int(0.99 * len(latencies))], 3),
        "longest_s": round(latencies[-1], 3),
        "longest_gap_s": round(max(gaps), 3),
    }


def _was_open(outcome: Outcome, kill_s: float) -> bool:
    """Tell whether a request was under way when a Router was killed, and ended by that."""
    was_sent = outcome.sent_s <= kill_s + CLOSING_S
    return was_sent and kill_s <= outcome.ended_s <= kill_s + AFTER_KILL_S


def measure(minutes: float, per_s: float, proxy: str) -> dict[str, Any]:
    """Start the service, break it under load, and count."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    os.environ["RAY_TMPDIR"] = str(folder)
    for variable in HAPROXY_PORTS:
        os.environ[variable] = str(free_port())
    haproxy = Ingress("haproxy", "0.0.0.0", free_port())
    ingress = haproxy if proxy == "haproxy" else Ingress("stock", "127.0.0.1", free_port())
    prepare_environment(ingress)
    seconds = 60 * minutes
    with (
        running(AppConfig.model_validate(SETTINGS), ingress) as url,
        callers(url, folder, per_s, seconds + SETTLE_S, "all") as wait,
    ):
        time.sleep(SETTLE_S)
        chaos = Chaos(time.monotonic(), folder)
        with Watch(os.getpid()) as watch:
            chaos.run(seconds)
            outcomes = wait()
    shutil.rmtree(folder, ignore_errors=True)
    return {
        **verdict(outcomes, chaos.router_kills_s),
        "retries": watch.retries(),
        "memory_mib": watch.memory_mib(),
        "events": chaos.done,
        "rollouts not done": chaos.stuck,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print, and fail where a request failed that should not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=8, help="requests per second")
    parser.add_argument("--proxy", choices=("haproxy", "stock"), default="haproxy")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    results = measure(options.minutes, options.rate, options.proxy)
    if options.json:
        print(json.dumps(results))
    else:
        for name, value in results.items():
            print(f"{name}: {value}")
    sys.exit(1 if results["failed"] or results["rollouts not done"] else 0)


if __name__ == "__main__":
    main()
