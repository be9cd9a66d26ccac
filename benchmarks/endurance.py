"""What grows with a request and what must not grow with their number, around the towers."""

import os
import statistics
import time
from typing import Any

from benchmarks.harness.processes import cpu_s, of_kind
from benchmarks.harness.servers import Setup, send, send_counting, service

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
AROUND = ("Router", "proxy")  # what a request costs outside the towers
MIB = 1024 * 1024


def rows(setup: Setup, seconds: float) -> list[dict[str, Any]]:
    """Return the time and processor time around the towers of requests of 1 to 512 texts."""
    table = []
    with service(setup.config) as url:
        send(url, "32 texts", 2)
        idle_ms_per_s = idle(seconds)
        for count in ROWS:
            result, cpu_ms = send_counting(url, f"{count} texts", seconds)
            idle_ms = idle_ms_per_s * result["mean_ms"] / 1e3
            towers_ms = result["stages_ms"]["towers"]
            outside_ms = result["mean_ms"] - towers_ms
            table.append(
                {
                    "rows": count,
                    "outside_ms": round(outside_ms, 2),
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


def show_rows(table: list[dict[str, Any]]) -> None:
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


def soak(setup: Setup, requests: int) -> dict[str, Any]:
    """Send one-query requests from many callers; return a Router's mean memory along the way."""
    begin_s, sent, memory_mib = time.monotonic(), 0, []
    with service(setup.config) as url:
        send(url, "query", 5, "--callers", str(setup.callers))
        while sent < requests:
            outcomes = send(url, "query", 10, "--callers", str(4 * setup.callers))["outcomes"]
            if set(outcomes) != {"200"}:
                raise RuntimeError(f"not every request was answered: {outcomes}")
            sent += outcomes["200"]
            resident = [router.resident_bytes for router in of_kind(os.getpid(), "Router")]
            memory_mib.append((sent, sum(resident) / len(resident) / MIB))
    half = [mib for _, mib in memory_mib[len(memory_mib) // 2 :]]
    return {
        "requests": sent,
        "seconds": round(time.monotonic() - begin_s),
        "router_mib": [(count, round(mib, 1)) for count, mib in memory_mib],
        "growth_mib_per_100k": round(_slope(memory_mib[len(memory_mib) // 2 :]) * 1e5, 1),
        "median_mib": round(statistics.median(half), 1),
    }


def _slope(points: list[tuple[int, float]]) -> float:
    """Return the slope of the line through points by least squares; 0 of one."""
    if len(points) < 2:
        return 0.0
    slope, _ = statistics.linear_regression(*zip(*points, strict=True))
    return slope
