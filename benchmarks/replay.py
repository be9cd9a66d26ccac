"""How much of a recorded trace, run faster and faster, is answered in time?

    python -m benchmarks.replay --trace FILE [--speedup 1 2 4] [--seconds 30] [--json]

The service and the baseline server are sent the same texts at the same times, by callers who say
how long they wait (`--limit-ms`), and leave after it. So whatever is answered is answered within
the same limit, which bounds both p99, and goodput is the tokens per second that still are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import report
from benchmarks.harness.callers import send
from benchmarks.harness.random_checkpoint import checkpoint
from benchmarks.harness.servers import Setup, baseline_server, service

SPEEDUPS = (0.5, 1.0, 2.0, 3.0, 4.0)


def replay(
    setup: Setup, trace: Path, speedups: Sequence[float], seconds: float, limit_ms: float
) -> dict[str, Any]:
    """Send the trace at each speed to both servers in turns.

    Returns:
        results by speed and server, the limit, and the best goodput of each.
    """
    results: dict[float, dict[str, Any]] = {}
    with service(setup.texts) as url, baseline_server(setup) as baseline:
        servers = {"service": url, "baseline": baseline}
        for server in servers.values():
            send(server, "32 texts", 2)
        for speedup in speedups:
            options = ["--trace", str(trace), "--speedup", str(speedup)]
            options += ["--patience-s", str(limit_ms / 1e3)]
            results[speedup] = {
                name: send(server, "trace", seconds, *options) for name, server in servers.items()
            }
            report.progress(f"speed {speedup:g}: {goodput(results[speedup])}")
    best = {name: max(goodput(run)[name] for run in results.values()) for name in servers}
    return {"speeds": results, "limit_ms": limit_ms, "goodput": best}


def goodput(run: dict[str, Any]) -> dict[str, float]:
    """Return the tokens per second that each server answered in time."""
    return {name: result["tokens_per_s"] for name, result in run.items()}


def show(results: dict[str, Any]) -> None:
    """Print a line for each speed and server."""
    for speedup, servers in results["speeds"].items():
        for name, run in servers.items():
            print(
                f"speed {speedup:4g} {name:8s} {run['requests_per_s']:7.2f} requests/s "
                f"{run['tokens_per_s']:9.1f} tokens/s  p50 {run['p50_ms']} p99 {run['p99_ms']} ms"
                f"  outcomes {run['outcomes']}, sent late by {run['sent_late_p99_ms']} ms at p99, "
                f"generator {run['generator_core_share']:.0%} of a core"
            )
        print(f"speed {speedup:4g} {ratio(goodput(servers))}")
    best, limit_s = results["goodput"], results["limit_ms"] / 1e3
    print(f"the best of all speeds within {limit_s:g} s: {best}; {ratio(best)}")


def ratio(tokens_per_s: dict[str, float]) -> str:
    """Compare the goodput of both."""
    ours, theirs = tokens_per_s["service"], tokens_per_s["baseline"]
    return f"{ours / theirs:.2f}x the baseline's" if theirs else "the baseline answers none"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = report.command(__doc__)
    parser.add_argument("--trace", type=Path, required=True, help="CSV with times and tokens")
    parser.add_argument("--speedup", type=float, nargs="+", default=SPEEDUPS)
    parser.add_argument("--limit-ms", type=float, default=2000, help="how long callers wait")
    parser.add_argument("--seconds", type=float, default=6)
    report.add_model(parser)
    options = parser.parse_args(arguments)
    with checkpoint(options.size) as source:
        setup = Setup.on(options.device, source)
        results = replay(setup, options.trace, options.speedup, options.seconds, options.limit_ms)
    report.write(options, results, show)


if __name__ == "__main__":
    main()
