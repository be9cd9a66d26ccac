"""What reaches the reader of what the towers can do, and what a request costs around them.

    python -m benchmarks.serve [--mixes query "32 texts" ...] [--seconds 6] [--json]
    python -m benchmarks.serve --trace FILE [--speedup 1 2 4] [--seconds 30]
    python -m benchmarks.serve --rows
    python -m benchmarks.serve --soak 100000

Starts the service (HAProxy ingress, on loopback) and the baseline server of
`benchmarks.baseline_server` on the same weights, and sends both the same requests in turns, from a
process of its own: one caller; eight callers; then an open loop at growing rates up to the knee.
The same towers called directly, with as many threads, give the rate to compare with. With a
trace, both get it at its own times, run faster. `--rows` shows what 1 to 512 texts in a request
cost around the towers, `--soak` the Router's memory over many requests.
"""

import argparse
import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import endurance, replay
from benchmarks.load import calls
from benchmarks.machine import describe
from benchmarks.servers import CALLERS, CONFIG, baseline_server, send, send_counting, service
from deployments.model import ClipModel
from deployments.work import cut

MIXES = ("query", "32 texts", "128 texts", "1 image", "8 images", "16 texts + 4 images")
SHARES = (0.5, 0.8, 1.1)  # of the closed loop's rate, offered in the open loop


def measure(url: str, mix: str, seconds: float) -> dict[str, Any]:
    """Ask one server for one mix: one caller, many callers, then growing rates."""
    send(url, mix, 2, "--callers", str(CALLERS))
    one = send(url, mix, seconds)
    many, cpu_ms = send_counting(url, mix, seconds, "--callers", str(CALLERS))
    rates = {}
    for share in SHARES:
        rate = max(0.5, share * many["requests_per_s"])
        rates[share] = send(url, mix, seconds, "--rate", f"{rate:.2f}")
    return {
        "one caller": one,
        f"{CALLERS} callers": many,
        "cpu_ms_per_request": {
            kind: round(spent, 2) for kind, spent in sorted(cpu_ms.items()) if spent
        },
        "open loop": rates,
    }


def direct(mix: str, seconds: float) -> float:
    """Return the items per second of the towers, called with the same items in full batches."""
    code = f"import benchmarks.serve as b; print(b.call_directly({mix!r}, {seconds}))"
    environment = os.environ | {"OMP_NUM_THREADS": str(int(CONFIG.text.num_cpus))}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    )
    return float(done.stdout)


def call_directly(mix: str, seconds: float) -> float:
    """Run in a process of its own: decode and embed, no HTTP and no Ray; tokenised before."""
    model = ClipModel.load()
    requests = calls(mix)
    items = [item for _ in range(60) for item in json.loads(next(requests).body)["input"]]
    texts = [item["text"] for item in items if "text" in item]
    images = [base64.b64decode(item["image"]) for item in items if "image" in item][:320]
    token_ids = model.tokenizer.encode(texts) if texts else []
    budget = CONFIG.text.max_batch_tokens
    batches = [token_ids[part] for part in cut([len(ids) for ids in token_ids], budget)]

    def once() -> None:
        for batch in batches:
            model.embed_tokens(batch)
        if images:
            model.encode_image(images, normalized=False, batch_size=CONFIG.vision.max_batch_images)

    once()
    begin, rounds = time.perf_counter(), 0
    while time.perf_counter() < begin + seconds:
        once()
        rounds += 1
    return rounds * (len(texts) + len(images)) / (time.perf_counter() - begin)


def compare(mixes: Sequence[str], seconds: float) -> dict[str, Any]:
    """Start both servers and measure every mix on each."""
    results: dict[str, Any] = {}
    with baseline_server() as baseline, service() as url:
        for mix in mixes:
            results[mix] = {
                "service": measure(url, mix, seconds),
                "baseline": measure(baseline, mix, seconds),
                "direct_items_per_s": direct(mix, seconds),
            }
            print(mix, json.dumps(results[mix]), file=sys.stderr, flush=True)
    return results


def show(results: dict[str, Any]) -> None:
    """Print a line for each mix."""
    for mix, result in results.items():
        ours, theirs = result["service"], result["baseline"]
        rate, other = ours[f"{CALLERS} callers"], theirs[f"{CALLERS} callers"]
        print(
            f"{mix:22s} {rate['items_per_s']:8.1f} items/s, "
            f"{rate['items_per_s'] / max(other['items_per_s'], 0.01):.2f}x baseline, "
            f"{rate['items_per_s'] / result['direct_items_per_s']:.0%} of direct; one caller p50 "
            f"{ours['one caller']['p50_ms']} ms (baseline {theirs['one caller']['p50_ms']} ms); "
            f"CPU ms per request {ours['cpu_ms_per_request']}; "
            f"generator {rate['generator_core_share']:.0%} of a core"
        )


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
    options = parser.parse_args(arguments)
    results: Any
    if options.trace:
        results = replay.replay(options.trace, options.speedup, options.seconds, options.limit_ms)
        display: Any = replay.show
    elif options.rows:
        results, display = endurance.rows(options.seconds), endurance.show_rows
    elif options.soak:
        results, display = endurance.soak(options.soak), print
    else:
        results, display = compare(options.mixes, options.seconds), show
    if options.json:
        print(json.dumps({"machine": describe(torch.device("cpu")), "results": results}))
    else:
        display(results)


if __name__ == "__main__":
    main()
