"""What becomes of requests when three times as many come as the service can answer?

`python -m benchmarks.overload [--seconds 60] [--factor 3] [--json]` starts the service on this
machine, finds the rate that it can hold (a closed loop), then offers `factor` times that rate
(an open loop), and asks of every request what became of it. Generator and service share the
machine, in processes of their own.
"""

import argparse
import asyncio
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import aiohttp
import torch

from benchmarks.harness.machine import describe
from deployments.config import AppConfig
from serve_app.server import LOOPBACK, Ingress, free_port, prepare_environment, running

WORDS_PER_TEXT = 120
TEXTS_PER_REQUEST = 16
CALLERS = 8
CONFIG = AppConfig.model_validate(
    {
        "text": {"num_cpus": 0.5},
        "vision": {"enabled": False},
        "router": {"num_cpus": 0.5, "max_queued_tokens": 100_000},
    }
)


@dataclass(frozen=True)
class Outcome:
    """One request: when it was sent, when it ended and how."""

    sent_s: float
    ended_s: float
    status: int
    retry_after_s: float | None = None


def body(number: int) -> bytes:
    """Return a request of some thousand tokens; texts alike would be computed only once."""
    words = " ".join(["word"] * WORDS_PER_TEXT)
    texts = [f"{number} {index} {words}" for index in range(TEXTS_PER_REQUEST)]
    request = {"input": texts, "dimensions": 8, "embedding_type": "base64"}
    return json.dumps(request).encode()


async def ask(session: aiohttp.ClientSession, url: str, data: bytes) -> Outcome:
    """Send one request and note its end; a broken connection counts as status 0."""
    sent_s = time.monotonic()
    try:
        async with session.post(f"{url}/v1/embeddings", data=data) as answer:
            await answer.read()
            retry_ms = answer.headers.get("retry-after-ms")
            retry_s = float(retry_ms) / 1000 if retry_ms else None
            return Outcome(sent_s, time.monotonic(), answer.status, retry_s)
    except (aiohttp.ClientError, TimeoutError):
        return Outcome(sent_s, time.monotonic(), 0)


async def closed_loop(url: str, seconds: float) -> float:
    """Return the requests per second that a few callers get who always wait for their answer."""
    numbers, end = count(), time.monotonic() + seconds
    outcomes: list[Outcome] = []
    async with session() as client:

        async def caller() -> None:
            while time.monotonic() < end:
                outcomes.append(await ask(client, url, body(next(numbers))))

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
    assert all(outcome.status == 200 for outcome in outcomes)
    return sum(outcome.ended_s <= end for outcome in outcomes) / seconds


async def open_loop(url: str, per_s: float, seconds: float) -> list[Outcome]:
    """Send requests at a fixed rate, whatever becomes of them."""
    begin = time.monotonic()
    tasks = []
    async with session() as client:
        for number in range(int(per_s * seconds)):
            await asyncio.sleep(max(0.0, begin + number / per_s - time.monotonic()))
            tasks.append(asyncio.create_task(ask(client, url, body(number))))
        return list(await asyncio.gather(*tasks))


def session() -> aiohttp.ClientSession:
    """Return a client without a limit on its connections."""
    timeout = aiohttp.ClientTimeout(total=120)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)


def drain_ratios(outcomes: Sequence[Outcome]) -> list[float]:
    """Return, for each refusal, Retry-After over the time until the work before it was done."""
    served = [outcome for outcome in outcomes if outcome.status == 200]
    ratios = []
    for refused in (outcome for outcome in outcomes if outcome.retry_after_s):
        before = [x.ended_s for x in served if x.sent_s < refused.sent_s < x.ended_s]
        if before and refused.retry_after_s:
            ratios.append(refused.retry_after_s / (max(before) - refused.sent_s))
    return ratios


def memory_bytes() -> int:
    """Return the resident memory of this user's Ray replicas."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"ServeReplica" in (process / "cmdline").read_bytes():
                pages = int((process / "statm").read_text().split()[1])
                total += pages * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):  # it has just ended
            continue
    return total


def measure(seconds: float, factor: float) -> dict[str, object]:
    """Start the service, measure it at ease, overload it, measure it again."""
    ingress = Ingress("stock", LOOPBACK, free_port())
    prepare_environment(ingress)
    with running(CONFIG, ingress) as url:
        asyncio.run(closed_loop(url, 5))
        before_bytes = memory_bytes()
        capacity = asyncio.run(closed_loop(url, 15))
        begin = time.monotonic()
        outcomes = asyncio.run(open_loop(url, factor * capacity, seconds))
        goodput = sum(x.status == 200 and x.ended_s <= begin + seconds for x in outcomes) / seconds
        after = asyncio.run(closed_loop(url, 10))
        after_bytes = memory_bytes()
    ratios = sorted(drain_ratios(outcomes))
    waits_s = sorted(x.ended_s - x.sent_s for x in outcomes if x.status == 429)
    return {
        "capacity_requests_per_s": capacity,
        "offered": len(outcomes),
        "outcomes": dict(Counter(outcome.status for outcome in outcomes)),
        "goodput_over_capacity": goodput / capacity,
        "after_over_before": after / capacity,
        "retry_after_over_drain": {
            "median": statistics.median(ratios),
            "p05": ratios[len(ratios) // 20],
            "p95": ratios[-len(ratios) // 20],
            "within_2x": sum(0.5 <= ratio <= 2 for ratio in ratios) / len(ratios),
        },
        "refusal_p95_s": waits_s[-len(waits_s) // 20],
        "memory_after_over_before": after_bytes / before_bytes,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--factor", type=float, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    results = {"machine": describe(torch.device("cpu"))} | measure(options.seconds, options.factor)
    if options.json:
        print(json.dumps(results))
        return
    for name, value in results.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
