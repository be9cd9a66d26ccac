"""A recorded trace, replayed at growing speed to the service and to the baseline.

Both are sent the same texts at the same times. Goodput is compared at equal p99: the tokens per
second that each still answers within the limit.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.servers import TEXTS, baseline_server, send, service

SPEEDUPS = (0.5, 1.0, 2.0, 3.0, 4.0)


def replay(
    trace: Path, speedups: Sequence[float], seconds: float, limit_ms: float
) -> dict[str, Any]:
    """Send the trace at each speed to both servers in turns.

    Returns:
        results by speed and server, and the best goodput of each within the limit.
    """
    results: dict[float, dict[str, Any]] = {}
    with baseline_server() as baseline, service(TEXTS) as url:
        servers = {"service": url, "baseline": baseline}
        for server in servers.values():
            send(server, "32 texts", 2)
        for speedup in speedups:
            options = "--trace", str(trace), "--speedup", str(speedup)
            results[speedup] = {
                name: send(server, "trace", seconds, *options) for name, server in servers.items()
            }
    return {
        "speeds": results,
        "limit_ms": limit_ms,
        "goodput": {name: best(results, name, limit_ms) for name in ("service", "baseline")},
    }


def best(results: dict[float, dict[str, Any]], name: str, limit_ms: float) -> float:
    """Return the most tokens per second that a server answered with its p99 within the limit."""
    runs = [run[name] for run in results.values()]
    within = [x["tokens_per_s"] for x in runs if x["p99_ms"] and x["p99_ms"] <= limit_ms]
    return max(within, default=0.0)


def show(result: dict[str, Any]) -> None:
    """Print a line for each speed and server."""
    for speedup, servers in result["speeds"].items():
        for name, run in servers.items():
            print(
                f"speed {speedup:4g} {name:8s} {run['requests_per_s']:7.2f} requests/s "
                f"{run['tokens_per_s']:9.1f} tokens/s  p50 {run['p50_ms']} p99 {run['p99_ms']} ms"
                f"  outcomes {run['outcomes']}, sent late by {run['sent_late_p99_ms']} ms at p99, "
                f"generator {run['generator_core_share']:.0%} of a core"
            )
    goodput, limit_s = result["goodput"], result["limit_ms"] / 1e3
    ratio = goodput["service"] / goodput["baseline"] if goodput["baseline"] else float("inf")
    print(f"goodput with p99 within {limit_s:g} s: {goodput}; {ratio:.2f}x the baseline's")
