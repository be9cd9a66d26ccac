"""Does the memory of the Router and of the towers stay flat under load without pauses?

    python -m benchmarks.soak [--minutes 30] [--json]

Callers send queries, texts and images, each waiting for its answer only. The memory of every kind
of replica is looked at all the while; what counts is its mean in the last third of the time over
that in the second: caches and allocators fill in the first.
"""

import os
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.harness import report
from benchmarks.harness.callers import asking
from benchmarks.harness.outcomes import tally
from benchmarks.harness.processes import REPLICAS, of_kind, resident_bytes
from benchmarks.harness.random_checkpoint import checkpoint
from benchmarks.harness.sampler import Sampler
from benchmarks.harness.servers import Setup, service

MIXES = ("query", "query", "query", "8 texts", "1 image", "4 texts + 1 image")
MIB = 1024 * 1024
PERIOD_S = 5.0
SHOWN = 12  # values of each kind that the answer has, evenly over the time
MemoryMib = dict[str, float]  # of one replica, by kind


def look() -> MemoryMib:
    """Return the memory of one replica of each kind."""
    found = {kind: of_kind(os.getpid(), kind) for kind in REPLICAS}
    return {
        kind: resident_bytes(processes) / len(processes) / MIB
        for kind, processes in found.items()
        if processes
    }


def measure(setup: Setup, minutes: float) -> dict[str, Any]:
    """Run the service under load; return how its replicas' memory went."""
    callers = "--callers", str(setup.callers)
    with (
        service(setup.config) as url,
        asking(url, MIXES, 60 * minutes, *callers) as wait,
        Sampler(look, PERIOD_S) as memory,
    ):
        outcomes = wait()
    return {
        "requests": len(outcomes),
        "outcomes": tally(outcomes),
        "memory": {
            kind: course([seen[kind] for _, seen in memory.samples if kind in seen])
            for kind in REPLICAS
        },
    }


def course(memory_mib: Sequence[float]) -> dict[str, Any]:
    """Return values of memory along the way, and the last third's mean over the second's."""
    third = len(memory_mib) // 3
    second, last = memory_mib[third : 2 * third], memory_mib[2 * third :]
    step = max(1, len(memory_mib) // SHOWN)
    return {
        "mib": [round(value) for value in memory_mib[::step]],
        "last_over_second_third": statistics.mean(last) / statistics.mean(second or last),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = report.command(__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    report.add_model(parser)
    options = parser.parse_args(arguments)
    with checkpoint(options.size) as source:
        results = measure(Setup.on(options.device, source), options.minutes)
    report.write(options, results, report.show_values)


if __name__ == "__main__":
    main()
