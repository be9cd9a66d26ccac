"""What does one more row in a request cost around the towers?

    python -m benchmarks.rows [--seconds 6] [--json]

One caller sends requests of 1 to 512 texts: time outside the towers, by the answers'
Server-Timing, and processor time of the Router and the proxy.
"""

import os
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.harness import report
from benchmarks.harness.callers import send, send_counting
from benchmarks.harness.processes import cpu_s
from benchmarks.harness.random_checkpoint import checkpoint
from benchmarks.harness.servers import Setup, service

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
AROUND = ("Router", "proxy")  # what a request costs outside the towers


def measure(setup: Setup, seconds: float) -> list[dict[str, Any]]:
    """Return the time and processor time around the towers of requests of 1 to 512 texts."""
    table = []
    with service(setup.config) as url:
        send(url, "32 texts", min(2, seconds))
        idle_ms_per_s = idle(seconds)
        for count in ROWS:
            result, cpu_ms = send_counting(url, f"{count} texts", seconds)
            idle_ms = idle_ms_per_s * result["mean_ms"] / 1e3
            towers_ms = result["stages_ms"]["towers"]
            table.append(
                {
                    "rows": count,
                    "outside_ms": round(result["mean_ms"] - towers_ms, 2),
                    "towers_ms": towers_ms,
                    "cpu_ms": round(sum(cpu_ms[kind] for kind in AROUND) - idle_ms, 2),
                }
            )
    return table


def idle(seconds: float) -> float:
    """Return the processor milliseconds per second that are used around the towers by themselves.

    Large requests take long, and would be charged for what the processes do at any time.
    """
    before = cpu_s(os.getpid())
    time.sleep(seconds)
    after = cpu_s(os.getpid())
    return sum(1e3 * (after[kind] - before[kind]) for kind in AROUND) / seconds


def show(table: list[dict[str, Any]]) -> None:
    """Print the table, and what one more row costs: the slope from the first to the last line."""
    print("rows   outside the towers   around them   in and before the towers")
    for line in table:
        print(
            f"{line['rows']:4d} {line['outside_ms']:10.2f} ms {line['cpu_ms']:15.2f} ms of CPU "
            f"{line['towers_ms']:10.1f} ms"
        )
    first, last = table[0], table[-1]
    more = last["rows"] - first["rows"]
    for name in ("outside_ms", "cpu_ms"):
        print(f"{name}: {1e3 * (last[name] - first[name]) / more:.1f} us for one more row")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = report.command(__doc__)
    parser.add_argument("--seconds", type=float, default=6)
    report.add_model(parser)
    options = parser.parse_args(arguments)
    with checkpoint(options.size) as source:
        table = measure(Setup.on(options.device, source), options.seconds)
    report.write(options, table, show)


if __name__ == "__main__":
    main()
