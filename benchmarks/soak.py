"""Does a Router's memory grow with the number of requests?

    python -m benchmarks.soak [--requests 100000] [--json]

Many callers send single queries; after every 10 seconds the Routers' memory is noted.
"""

import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.harness import report
from benchmarks.harness.callers import send
from benchmarks.harness.processes import of_kind, resident_bytes
from benchmarks.harness.random_checkpoint import checkpoint
from benchmarks.harness.servers import Setup, service

MIB = 1024 * 1024
PERIOD_S = 10


def measure(setup: Setup, requests: int) -> dict[str, Any]:
    """Send single queries from many callers; return a Router's mean memory along the way.

    Raises:
        RuntimeError: a request was not answered.
    """
    begin_s, sent, memory_mib = time.monotonic(), 0, []
    with service(setup.config) as url:
        send(url, "query", 5, "--callers", str(setup.callers))
        while sent < requests:
            left = str(requests - sent)
            options = ["--callers", str(4 * setup.callers), "--requests", left]
            outcomes = send(url, "query", PERIOD_S, *options)["outcomes"]
            if set(outcomes) != {"200"}:
                raise RuntimeError(f"not every request was answered: {outcomes}")
            sent += outcomes["200"]
            routers = of_kind(os.getpid(), "Router")
            memory_mib.append((sent, resident_bytes(routers) / len(routers) / MIB))
    half = memory_mib[len(memory_mib) // 2 :]
    return {
        "requests": sent,
        "seconds": round(time.monotonic() - begin_s),
        "router_mib": [(count, round(mib, 1)) for count, mib in memory_mib],
        "growth_mib_per_100k": round(slope(half) * 1e5, 1),
        "median_mib": round(statistics.median(mib for _, mib in half), 1),
    }


def slope(points: list[tuple[int, float]]) -> float:
    """Return the slope of the line through points by least squares; 0 of one."""
    if len(points) < 2:
        return 0.0
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = report.command(__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    report.add_model(parser)
    options = parser.parse_args(arguments)
    with checkpoint(options.size) as source:
        results = measure(Setup.on(options.device, source), options.requests)
    report.write(options, results, report.show_values)


if __name__ == "__main__":
    main()
