"""Which autoscaling policy keeps how much on time, at what cost, on which traffic?

    python -m benchmarks.autoscaling [--traces FOLDER] [--only NAME] [--charts FOLDER] [--json]

Simulated, as `jina-clip-serve plan --against all`: every policy over its own settings, with
start-ups of 20, 40 and 120 s. Bursts and the week are generated; the two traces are read from a
folder where they are there. All of it takes about an hour on one core.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness import report
from deployments.plan import STARTUPS_S, PlanOptions, plot, run

EVERY = PlanOptions(startups_s=STARTUPS_S, against="all")
CONVERSATION, SERVEGEN = "azure_llm_2023_conv.csv", "servegen_mm_image_day.csv.gz"


def traffics(traces: Path | None) -> Iterator[tuple[str, PlanOptions]]:
    """Yield each traffic with the sizes that make its peak several replicas."""
    if traces is not None:
        options = replace(EVERY, trace=traces / CONVERSATION, scale=10, text_rate=6_000)
        yield "conversation", options
        sizes = replace(EVERY, scale=20, text_rate=30_000, image_rate=60)
        yield "ServeGen day", replace(sizes, trace=traces / SERVEGEN)
    yield "week", replace(EVERY, scale=12)
    for seed in range(2, 8):
        options = replace(EVERY, generated="bursts", seed=seed, text_rate=40_000, image_rate=8)
        yield f"bursts {seed}", options


def measure(traces: Path | None, only: str, charts: Path | None) -> dict[str, Any]:
    """Plan for each traffic; return its policies by tower and start-up."""
    results = {}
    for name, options in traffics(traces):
        if only not in name:
            continue
        report.progress(name)
        planned = run(options)
        if charts is not None:
            plot(planned, charts / f"{name.replace(' ', '_')}.png")
        results[name] = planned.to_json()
    return results


def show(results: dict[str, Any]) -> None:
    """Print a line for each traffic, tower, start-up and policy."""
    for traffic, planned in results.items():
        for part in planned["modalities"]:
            for start in part["starts"]:
                bound = start["bound"]["gpu_hours"]
                print(f"{traffic}, {part['name']}, {start['startup_s']:g} s: bound {bound:,.1f}")
                for policy in start["policies"]:
                    hours = policy["gpu_hours"]
                    print(
                        f"  {policy['name']:16} {policy['share_on_time']:8.2%} {hours:9,.1f} "
                        f"{hours / bound:6.2f}x  {policy['setting']}"
                    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = report.command(__doc__)
    parser.add_argument("--traces", type=Path, help="a folder with the recorded traces")
    parser.add_argument("--only", default="", help="traffics whose name holds this")
    parser.add_argument("--charts", type=Path, help="a folder for a chart of each traffic")
    options = parser.parse_args(arguments)
    report.write(options, measure(options.traces, options.only, options.charts), show)


if __name__ == "__main__":
    main()
