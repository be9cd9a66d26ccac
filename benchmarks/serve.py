"""How much of what the towers can do reaches the caller?

    python -m benchmarks.serve [--mixes query "32 texts" ...] [--seconds 6] [--json]
    python -m benchmarks.serve --device cuda --size full

Starts the service (HAProxy ingress) and a baseline server (harness/baseline_server.py) on the same
weights, and sends both the same requests in turns, from a process of its own: one caller; many
callers (eight on a CPU, 48 on a GPU); then an open loop at growing rates. The same towers called
directly, with as many threads, give the rate to compare with. On a GPU both towers share it, as in
`serve_app/configs/single_gpu.yaml`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.harness import report
from benchmarks.harness.callers import measure
from benchmarks.harness.random_checkpoint import checkpoint
from benchmarks.harness.servers import Setup, baseline_server, service

MIXES = ("query", "32 texts", "128 texts", "1 image", "8 images", "8 photos", "16 texts + 4 images")


def direct(setup: Setup, mix: str, seconds: float) -> float:
    """Return the items per second of the towers, called with the same items in full batches."""
    command = [sys.executable, "-m", "benchmarks.harness.direct", "--mix", mix]
    command += ["--seconds", str(seconds), *setup.options]
    threads = {"OMP_NUM_THREADS": str(int(setup.config.text.num_cpus))}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | threads
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
            report.progress(f"{mix} {json.dumps(results[mix])}")
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = report.command(__doc__)
    parser.add_argument("--mixes", nargs="*", default=MIXES)
    parser.add_argument("--seconds", type=float, default=6)
    report.add_model(parser)
    options = parser.parse_args(arguments)
    with checkpoint(options.size) as source:
        results = compare(Setup.on(options.device, source), options.mixes, options.seconds)
    report.write(options, results, show)


if __name__ == "__main__":
    main()
