"""What reaches the reader of what the towers can do, and what a request costs around them.

    python -m benchmarks.serve [--mixes query "32 texts" ...] [--seconds 6] [--json]
    python -m benchmarks.serve --trace FILE [--speedup 1 2 4] [--seconds 30]
    python -m benchmarks.serve --rows
    python -m benchmarks.serve --soak 100000
    python -m benchmarks.serve --device cuda --size full [--json]

Starts the service (HAProxy ingress, on loopback) and the baseline server (harness/) on the same
weights, and sends both the same requests in turns, from a process of its own: one caller;
many callers (eight on a CPU, 48 on a GPU); then an open loop at growing rates
up to the knee. The same towers called directly, with as many threads, give the rate
to compare with. On a GPU both towers share it, as in `serve_app/configs/single_gpu.yaml`. With a
trace, both get it at its own times, run faster. `--rows` shows what 1 to 512 texts in a request
cost around the towers, `--soak` the Router's memory over many requests.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import endurance, replay
from benchmarks.harness.machine import describe
from benchmarks.harness.servers import (
    Setup,
    baseline_server,
    prepared,
    send,
    send_counting,
    service,
)

MIXES = ("query", "32 texts", "128 texts", "1 image", "8 images", "16 texts + 4 images")
SHARES = (0.5, 0.8, 1.1)  # of the closed loop's rate, offered in the open loop


def measure(url: str, mix: str, seconds: float, callers: int) -> dict[str, Any]:
    """Ask one server for one mix: one caller, many callers, then growing rates."""
    send(url, mix, 2, "--callers", str(callers))
    one = send(url, mix, seconds)
    many, cpu_ms = send_counting(url, mix, seconds, "--callers", str(callers))
    rates = {}
    for share in SHARES:
        rate = max(0.5, share * many["requests_per_s"])
        rates[share] = send(url, mix, seconds, "--rate", f"{rate:.2f}")
    return {
        "one caller": one,
        "many callers": many,
        "cpu_ms_per_request": {
            kind: round(spent, 2) for kind, spent in sorted(cpu_ms.items()) if spent
        },
        "open loop": rates,
    }


def direct(setup: Setup, mix: str, seconds: float) -> float:
    """Return the items per second of the towers, called with the same items in full batches."""
    command = [sys.executable, "-m", "benchmarks.harness.direct", "--mix", mix]
    command += ["--seconds", str(seconds), *setup.options]
    threads = {"OMP_NUM_THREADS": str(int(setup.config.text.num_cpus))}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | threads
    )
    return float(done.stdout)


def compare(setup: Setup, mixes: Sequence[str], seconds: float) -> dict[str, Any]:
    """Start both servers and measure every mix on each."""
    results: dict[str, Any] = {}
    with service(setup.config) as url, baseline_server(setup) as baseline:
        for mix in mixes:
            results[mix] = {
                "service": measure(url, mix, seconds, setup.callers),
                "baseline": measure(baseline, mix, seconds, setup.callers),
                "direct_items_per_s": direct(setup, mix, seconds),
            }
            print(mix, json.dumps(results[mix]), file=sys.stderr, flush=True)
    return results


def show(results: dict[str, Any]) -> None:
    """Print a line for each mix."""
    for mix, result in results.items():
        ours, theirs = result["service"], result["baseline"]
        rate, other = ours["many callers"], theirs["many callers"]
        print(
            f"{mix:22s} {rate['items_per_s']:8.1f} items/s, "
            f"{rate['items_per_s'] / max(other['items_per_s'], 0.01):.2f}x baseline, "
            f"{rate['items_per_s'] / result['direct_items_per_s']:.0%} of direct; one caller p50 "
            f"{ours['one caller']['p50_ms']} ms (baseline {theirs['one caller']['p50_ms']} ms); "
            f"CPU ms per request {ours['cpu_ms_per_request']}; "
            f"generator {rate['generator_core_share']:.0%} of a core"
        )


# Any: what one of the four measures, and what prints it.
def run(setup: Setup, options: argparse.Namespace) -> tuple[Any, Callable[[Any], None]]:
    """Measure what the options ask for; returns the results and what prints them."""
    if options.trace:
        speedup, limit_ms = options.speedup, options.limit_ms
        return replay.replay(setup, options.trace, speedup, options.seconds, limit_ms), replay.show
    if options.rows:
        return endurance.rows(setup, options.seconds), endurance.show_rows
    if options.soak:
        return endurance.soak(setup, options.soak), print
    return compare(setup, options.mixes, options.seconds), show


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mixes", nargs="*", default=MIXES)
    parser.add_argument("--trace", type=Path, help="CSV with times and tokens: replay it instead")
    parser.add_argument("--speedup", type=float, nargs="+", default=replay.SPEEDUPS)
    parser.add_argument(
        "--limit-ms", type=float, default=2000, help="how long a trace's callers wait"
    )
    parser.add_argument("--rows", action="store_true", help="requests of 1 to 512 texts instead")
    parser.add_argument("--soak", type=int, metavar="REQUESTS", help="memory over many instead")
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--size", choices=("demo", "full"), default="demo", help="full: random weights"
    )
    options = parser.parse_args(arguments)
    with prepared(options.device, options.size) as setup:
        results, display = run(setup, options)
    if options.json:
        print(json.dumps({"machine": describe(torch.device(options.device)), "results": results}))
    else:
        display(results)


if __name__ == "__main__":
    main()
