"""What does a service cost that nobody calls, and how soon is it whole again?

    python -m benchmarks.idle [--seconds 30] [--turns 2] [--against NAME=VALUE ...] [--json]

Starts the service as `up` does, one Router without a proxy, lets it settle, and takes the processor
time of each of its processes; then kills the Router and waits until a query is answered again. Each
turn is a start of its own; with `--against`, in turns with starts that have these settings in their
environment.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import httpx

from benchmarks.harness import report
from benchmarks.harness.processes import cpu_s, of_kind
from benchmarks.harness.sampler import seconds_until
from benchmarks.harness.servers import Setup, service

SETTLE_S = 15
KILLS = 3
LIMIT_S = 60
QUERY = {"model": "jina-clip-v2", "input": ["a red apple"]}


def once(seconds: float) -> dict[str, Any]:
    """Start the service; return the cores that its processes take, and seconds without a Router."""
    with service(Setup.on("cpu").config, "direct") as url:
        time.sleep(SETTLE_S)
        before, driver_s, begin_s = cpu_s(os.getpid()), time.process_time(), time.monotonic()
        time.sleep(seconds)
        after, passed_s = cpu_s(os.getpid()), time.monotonic() - begin_s
        cores = {kind: (after[kind] - before.get(kind, 0.0)) / passed_s for kind in after}
        cores["up itself"] = (time.process_time() - driver_s) / passed_s
        return {"cores": cores, "recovery_s": [recovery_s(url) for _ in range(KILLS)]}


def recovery_s(url: str) -> float:
    """Kill the Router; return the seconds until a query is answered again."""
    (router,) = of_kind(os.getpid(), "Router")
    router.kill()
    router.wait()
    passed_s = seconds_until(lambda: answers(url), LIMIT_S)
    time.sleep(SETTLE_S / 3)
    return float("inf") if passed_s is None else passed_s


def answers(url: str) -> bool:
    """Tell whether a query is answered."""
    try:
        return httpx.post(f"{url}/v1/embeddings", json=QUERY).is_success
    except httpx.TransportError:
        return False


def turn(seconds: float, settings: Mapping[str, str]) -> dict[str, Any]:
    """Do it in a process of its own: Ray reads its settings when it is imported."""
    command = [sys.executable, "-m", "benchmarks.idle", "--once", "--seconds", f"{seconds:g}"]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | settings
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    report.progress(f"{dict(settings)} {found}")
    return found


def summary(turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians over some turns; the cores of all processes in `all`."""
    kinds = sorted({kind for x in turns for kind in x["cores"]})
    by_kind = {kind: median(x["cores"].get(kind, 0.0) for x in turns) for kind in kinds}
    together = median(sum(x["cores"].values()) for x in turns)
    return {
        "cores": {kind: round(x, 4) for kind, x in (by_kind | {"all": together}).items()},
        "recovery_s": sorted(round(s, 2) for x in turns for s in x["recovery_s"]),
    }


def compare(seconds: float, turns: int, against: Mapping[str, str]) -> dict[str, Any]:
    """Measure the service as it is, and in turns with other settings where there are some."""
    ways = {"as it is": {}, "against": against} if against else {"as it is": {}}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, settings in ways.items():
            found[name].append(turn(seconds, settings))
    return {name: summary(each) for name, each in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = report.command(__doc__)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--against", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.once:
        print(json.dumps(once(options.seconds)))
        return
    against = dict(setting.split("=", 1) for setting in options.against)
    results = compare(options.seconds, options.turns, against)
    report.write(options, results, report.show_values)


if __name__ == "__main__":
    main()
