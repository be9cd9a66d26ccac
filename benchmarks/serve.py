"""What reaches the vector's reader of what the towers can do, and what a request costs around them.

    python -m benchmarks.serve [--mixes query "32 texts" ...] [--trace FILE] [--seconds 6] [--json]

Starts the service (HAProxy ingress, on loopback) and the baseline server of
`benchmarks.baseline_server` on the same weights, and sends both the same request mixes in turns,
from a process of its own: one caller; eight callers; then an open loop at growing rates up to
the knee. The same towers called directly, with as many threads, give the rate to compare with.
"""

import argparse
import base64
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks import processes
from benchmarks.load import calls
from benchmarks.machine import describe
from deployments.config import AppConfig
from deployments.model import ClipModel
from deployments.work import cut
from serve_app.server import LOOPBACK, Ingress, free_port, prepare_environment, running

MIXES = ("query", "32 texts", "128 texts", "1 image", "8 images", "16 texts + 4 images")
SHARES = (0.5, 0.8, 1.1)  # of the closed loop's rate, offered in the open loop
CALLERS = 8
CONFIG = AppConfig.model_validate({"text": {"num_cpus": 1}, "vision": {"num_cpus": 1}})


def send(url: str, mix: str, seconds: float, *options: str) -> dict[str, Any]:
    """Run the generator in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.load", "--url", url, "--mix", mix]
    command += ["--seconds", str(seconds), *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure(url: str, mix: str, seconds: float, trace: Path | None) -> dict[str, Any]:
    """Ask one server for one mix: one caller, many callers, then growing rates."""
    more = ["--trace", str(trace)] if mix == "trace" else []
    send(url, mix, 2, "--callers", str(CALLERS), *more)
    one = send(url, mix, seconds, *more)
    before = processes.cpu_s(os.getpid())
    many = send(url, mix, seconds, "--callers", str(CALLERS), *more)
    used = processes.cpu_s(os.getpid()) - before
    requests = max(1.0, many["requests_per_s"] * seconds)
    rates = {}
    for share in SHARES:
        rate = max(0.5, share * many["requests_per_s"])
        rates[share] = send(url, mix, seconds, "--rate", f"{rate:.2f}", *more)
    per_request = {kind: round(1e3 * value / requests, 2) for kind, value in used.items()}
    return {
        "one caller": one,
        f"{CALLERS} callers": many,
        "cpu_ms_per_request": {kind: value for kind, value in per_request.items() if value},
        "open loop": rates,
    }


def direct(mix: str, seconds: float, trace: Path | None) -> float:
    """Return the items per second of the towers, called with the same items in full batches."""
    code = (
        f"import benchmarks.serve as b; print(b.call_directly({mix!r}, {seconds}, {str(trace)!r}))"
    )
    environment = os.environ | {"OMP_NUM_THREADS": str(int(CONFIG.text.num_cpus))}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    )
    return float(done.stdout)


def call_directly(mix: str, seconds: float, trace: str) -> float:
    """Run in a process of its own: decode and embed, no HTTP and no Ray; tokenised before."""
    model = ClipModel.load()
    requests = calls(mix, Path(trace) if mix == "trace" else None)
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


def compare(mixes: Sequence[str], seconds: float, trace: Path | None) -> dict[str, Any]:
    """Start both servers and measure every mix on each."""
    ingress = Ingress("haproxy", LOOPBACK, free_port())
    prepare_environment(ingress)
    results: dict[str, Any] = {}
    with ExitStack() as stack:
        baseline = stack.enter_context(baseline_server())
        url = stack.enter_context(running(CONFIG, ingress))
        for mix in mixes:
            results[mix] = {
                "service": measure(url, mix, seconds, trace),
                "baseline": measure(baseline, mix, seconds, trace),
                "direct_items_per_s": direct(mix, seconds, trace),
            }
            print(mix, json.dumps(results[mix]), file=sys.stderr, flush=True)
    return results


@contextmanager
def baseline_server() -> Iterator[str]:
    """Run the baseline server in a process of its own; yields its URL once it answers."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.baseline_server", "--port", str(port)]
    url, process = f"http://{LOOPBACK}:{port}", subprocess.Popen(command)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}/ready", timeout=1)
                break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mixes", nargs="*", default=MIXES)
    parser.add_argument("--trace", type=Path, help="CSV with ContextTokens; adds the mix 'trace'")
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    mixes = [*options.mixes, *(["trace"] if options.trace else [])]
    results = compare(mixes, options.seconds, options.trace)
    if options.json:
        print(json.dumps({"machine": describe(torch.device("cpu")), "results": results}))
        return
    for mix, result in results.items():
        ours, theirs = result["service"], result["baseline"]
        rate, other = ours[f"{CALLERS} callers"], theirs[f"{CALLERS} callers"]
        print(
            f"{mix:22s} {rate['items_per_s']:8.1f} items/s, "
            f"{rate['items_per_s'] / max(other['items_per_s'], 0.01):.2f}x baseline, "
            f"{rate['items_per_s'] / result['direct_items_per_s']:.0%} of direct; one caller p50 "
            f"{ours['one caller']['p50_ms']} ms (baseline {theirs['one caller']['p50_ms']} ms); "
            f"CPU ms per request {ours['cpu_ms_per_request']}"
        )


if __name__ == "__main__":
    main()
