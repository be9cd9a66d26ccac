"""What becomes of requests when three times as many come as the service can answer?

    python -m benchmarks.overload [--images] [--seconds 60] [--factor 3] [--json]

Finds the rate that the service can hold (a closed loop), then offers `factor` times that rate (an
open loop, at random times), and asks of every request what became of it. Generator and service
share the machine, in processes of their own. With `--images` the requests have images by URL, and
the tower answers at a given pace without computing (harness/paced.py), so that the machine is not
full with its work: what is downloaded for requests that are refused, how soon are they, and how
much memory does the Router take?
"""

import asyncio
import os
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.harness import h100, remote_images, report
from benchmarks.harness.callers import ask
from benchmarks.harness.outcomes import Outcome, quantile, tally
from benchmarks.harness.processes import REPLICAS, of_kind, resident_bytes
from benchmarks.harness.sampler import Sampler
from benchmarks.harness.servers import paced_towers, service
from deployments.checked import MIB
from deployments.config import AppConfig

MIX = "16 texts of 120 words"
CALLERS = 8
CLOSED_S = 15
IMAGE_BYTES = 1_000_000
MAX_QUEUED_BYTES = 128 * MIB
PACED_IMAGES_PER_S = 40
CONFIG = AppConfig.model_validate(
    {
        "text": {"num_cpus": 0.5},
        "vision": {"enabled": False},
        "router": {"num_cpus": 0.5, "max_queued_tokens": 100_000},
    }
)


def closed_loop(url: str, seconds: float) -> float:
    """Return the requests per second that a few callers get who always wait for their answer.

    Raises:
        RuntimeError: one was not answered.
    """
    outcomes = ask(url, MIX, seconds, "--callers", str(CALLERS))
    if not all(outcome.is_right for outcome in outcomes):
        raise RuntimeError(f"not every request was answered: {tally(outcomes)}")
    return in_time(outcomes, seconds) / seconds


def in_time(outcomes: Sequence[Outcome], seconds: float) -> int:
    """Count the requests that were answered within some seconds from the first one on."""
    end_s = min(outcome.sent_s for outcome in outcomes) + seconds
    return sum(outcome.is_right and outcome.ended_s <= end_s for outcome in outcomes)


def drain_ratios(outcomes: Sequence[Outcome]) -> list[float]:
    """Return, for each refusal, Retry-After over the time until the work before it was done."""
    served = [outcome for outcome in outcomes if outcome.is_right]
    ratios = []
    for refused in (outcome for outcome in outcomes if outcome.retry_after_s):
        before = [x.ended_s for x in served if x.sent_s < refused.sent_s < x.ended_s]
        if before and refused.retry_after_s:
            ratios.append(refused.retry_after_s / (max(before) - refused.sent_s))
    return ratios


def measure(seconds: float, factor: float) -> dict[str, Any]:
    """Start the service, measure it at ease, overload it, measure it again."""
    with service(CONFIG, "stock") as url:
        closed_loop(url, 5)
        before_bytes = resident_bytes(of_kind(os.getpid(), *REPLICAS))
        capacity = closed_loop(url, CLOSED_S)
        report.progress(f"{capacity:.2f} requests/s; now {factor:g} times as many")
        outcomes = ask(url, MIX, seconds, "--rate", str(factor * capacity))
        after = closed_loop(url, CLOSED_S)
        after_bytes = resident_bytes(of_kind(os.getpid(), *REPLICAS))
    ratios = drain_ratios(outcomes)
    refusals_s = [x.ended_s - x.sent_s for x in outcomes if x.status == 429]
    return {
        "capacity_requests_per_s": capacity,
        "offered": len(outcomes),
        "outcomes": tally(outcomes),
        "goodput_over_capacity": in_time(outcomes, seconds) / seconds / capacity,
        "after_over_before": after / capacity,
        "retry_after_over_drain": {
            "median": statistics.median(ratios) if ratios else None,
            "p05": quantile(0.05, ratios),
            "p95": quantile(0.95, ratios),
            "within_2x": sum(0.5 <= ratio <= 2 for ratio in ratios) / max(1, len(ratios)),
        },
        "refusal_p95_s": quantile(0.95, refusals_s),
        "memory_after_over_before": after_bytes / before_bytes,
    }


def measure_images(seconds: float, factor: float) -> dict[str, Any]:
    """Overload a service with images by URL, from a server that counts its downloads."""
    with remote_images.image_server(IMAGE_BYTES) as (port, counts):
        images = {"allow_networks": ["127.0.0.1/32"], "ports": [port], "max_fetches_per_host": 64}
        router = {"num_cpus": 0.5, "max_queued_bytes": MAX_QUEUED_BYTES, "max_queued_images": 512}
        router |= {"max_body_bytes": MIB}
        config = {"images": images, "router": router, "text": {"enabled": False}}
        os.environ[h100.IMAGES_PER_S_VARIABLE] = str(PACED_IMAGES_PER_S)  # before Ray starts
        with service(AppConfig.model_validate(config), "haproxy", towers=paced_towers) as url:
            asyncio.run(remote_images.closed_loop(url, port, 5, CALLERS))
            routers = of_kind(os.getpid(), "Router")
            before_bytes = resident_bytes(routers)
            easy = asyncio.run(remote_images.closed_loop(url, port, CLOSED_S, CALLERS))
            capacity = in_time(easy, CLOSED_S) / CLOSED_S
            report.progress(f"{capacity:.2f} requests/s; now {factor:g} times as many")
            with Sampler(lambda: resident_bytes(routers), 0.05) as memory:
                asked = asyncio.run(remote_images.open_loop(url, port, seconds, factor * capacity))
        counts.send("")
        downloaded_for = counts.recv()
    refused = {name: x for name, x in asked.items() if x.status == 429}
    peak_bytes = max(seen for _, seen in memory.samples)
    return {
        "capacity_requests_per_s": capacity,
        "offered": len(asked),
        "outcomes": tally(list(asked.values())),
        "goodput_over_capacity": in_time(list(asked.values()), seconds) / seconds / capacity,
        "refused": len(refused),
        "refused_with_downloads": len(refused.keys() & downloaded_for),
        "refusal_p95_s": quantile(0.95, [x.ended_s - x.sent_s for x in refused.values()]),
        "router_bytes": {"before": before_bytes, "peak": peak_bytes},
        "configured_bytes": MAX_QUEUED_BYTES,
        "peak_over_configured_mb": (peak_bytes - MAX_QUEUED_BYTES) / 1e6,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = report.command(__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--factor", type=float, default=3)
    parser.add_argument("--images", action="store_true", help="images by URL, no texts")
    options = parser.parse_args(arguments)
    run = measure_images if options.images else measure
    report.write(options, run(options.seconds, options.factor), report.show_values)


if __name__ == "__main__":
    main()
