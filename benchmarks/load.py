"""The load generator: request mixes, sent in a closed or an open loop, from a process of its own.

    python -m benchmarks.load --url http://127.0.0.1:8000 --mix query --seconds 8 --callers 1
    python -m benchmarks.load --url ... --mix trace --trace FILE --rate 50 --seconds 20

Prints JSON: what became of the requests, latencies, and the share of one core that the generator
itself used (near 1 it would have been the limit).
"""

import argparse
import asyncio
import base64
import csv
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import aiohttp

from serve_app.gallery import pictures

WORDS = (
    "red",
    "apple",
    "cat",
    "moon",
    "fast",
    "car",
    "blue",
    "house",
    "dog",
    "tree",
    "sun",
    "book",
)
MAX_TRACE_TOKENS = 8000
TOKENS_PER_WORD = 1.4  # of the shipped tokenizer on these words, measured


@dataclass(frozen=True)
class Call:
    """One request's body, and the items in it."""

    body: bytes
    items: int


def text(chance: random.Random, words: int) -> dict[str, str]:
    """Return a text of random words."""
    return {"text": " ".join(chance.choices(WORDS, k=words))}


def calls(mix: str, trace: Path | None) -> Iterator[Call]:
    """Yield the requests of a mix without end; a fixed seed makes them the same in every run."""
    chance = random.Random(0)
    images = cycle([base64.b64encode(p.path.read_bytes()).decode() for p in pictures()])
    lengths = cycle(trace_words(trace)) if trace else cycle([8])
    while True:
        items: list[dict[str, str]] = []
        if mix == "trace":
            items = [text(chance, next(lengths))]
        else:
            texts, shown = {
                "query": (1, 0),
                "32 texts": (32, 0),
                "128 texts": (128, 0),
                "512 texts": (512, 0),
                "1 image": (0, 1),
                "8 images": (0, 8),
                "16 texts + 4 images": (16, 4),
            }[mix]
            items = [text(chance, chance.randint(4, 40) if texts > 1 else 8) for _ in range(texts)]
            items += [{"image": next(images)} for _ in range(shown)]
        body = {"model": "jina-clip-v2", "input": items, "embedding_type": "base64"}
        yield Call(json.dumps(body).encode(), len(items))


def trace_words(path: Path) -> list[int]:
    """Read the text lengths of a trace (column ContextTokens), in words."""
    with path.open(newline="") as file:
        tokens = [int(row["ContextTokens"]) for row in csv.DictReader(file)]
    return [max(1, int(min(count, MAX_TRACE_TOKENS) / TOKENS_PER_WORD)) for count in tokens]


@dataclass(frozen=True)
class Outcome:
    """One request: how it ended, how long it took, what it carried, where its time went."""

    status: int
    ended_s: float
    latency_s: float
    items: int
    received_bytes: int
    stages: str


class Generator:
    """Sends requests and remembers what became of them."""

    def __init__(self, url: str, requests: Iterator[Call]) -> None:
        self.url = f"{url}/v1/embeddings"
        self.requests = requests
        self.outcomes: list[Outcome] = []

    async def send(self, client: aiohttp.ClientSession, scheduled_s: float | None = None) -> None:
        """Send one request; in an open loop its latency counts from when it was due."""
        call = next(self.requests)
        begin = scheduled_s or time.monotonic()
        stages, received, status = "", 0, 0
        try:
            headers = {"content-type": "application/json"}
            async with client.post(self.url, data=call.body, headers=headers) as answer:
                received = len(await answer.read())
                status, stages = answer.status, answer.headers.get("server-timing", "")
        except (aiohttp.ClientError, TimeoutError):
            pass
        end = time.monotonic()
        self.outcomes.append(Outcome(status, end, end - begin, call.items, received, stages))

    async def closed(self, seconds: float, callers: int) -> None:
        """Let callers ask, each waiting for its answer."""
        end = time.monotonic() + seconds

        async def caller() -> None:
            while time.monotonic() < end:
                await self.send(client)

        async with session() as client:
            await asyncio.gather(*(caller() for _ in range(callers)))

    async def open(self, seconds: float, per_s: float) -> None:
        """Send at random times at a mean rate (Poisson), whatever becomes of the requests."""
        chance, due_s = random.Random(1), time.monotonic()
        end, tasks = due_s + seconds, []
        async with session() as client:
            while (due_s := due_s + chance.expovariate(per_s)) < end:
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                tasks.append(asyncio.create_task(self.send(client, due_s)))
            await asyncio.gather(*tasks)


def session() -> aiohttp.ClientSession:
    """Return a client without a limit on its connections."""
    connector = aiohttp.TCPConnector(limit=0)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=90))


def summary(outcomes: Sequence[Outcome], seconds: float, cpu_s: float) -> dict[str, Any]:
    """Return rates over the time of the run, latencies in milliseconds, and mean time by stage."""
    good = [outcome for outcome in outcomes if outcome.status == 200]
    latencies = sorted(outcome.latency_s for outcome in good)

    def at(share: float) -> float:
        return round(1e3 * latencies[min(int(share * len(latencies)), len(latencies) - 1)], 2)

    items = sum(outcome.items for outcome in good)
    return {
        "outcomes": dict(Counter(outcome.status for outcome in outcomes)),
        "requests_per_s": round(len(good) / seconds, 2),
        "items_per_s": round(items / seconds, 1),
        "bytes_per_item": round(sum(x.received_bytes for x in good) / max(1, items)),
        "p50_ms": at(0.5) if good else None,
        "p95_ms": at(0.95) if good else None,
        "p99_ms": at(0.99) if good else None,
        "stages_ms": mean_stages([outcome.stages for outcome in good]),
        "generator_core_share": round(cpu_s / seconds, 3),
    }


def mean_stages(headers: Sequence[str]) -> dict[str, float]:
    """Return the mean of each stage of the Server-Timing headers, in milliseconds."""
    totals: Counter[str] = Counter()
    for header in headers:
        for part in header.split(","):
            name, _, duration = part.strip().partition(";dur=")
            if duration:
                totals[name] += float(duration.split(";")[0])
    return {name: round(total / max(1, len(headers)), 3) for name, total in totals.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Send and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--mix", default="query")
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--callers", type=int, default=1)
    parser.add_argument("--rate", type=float, help="requests per second: an open loop")
    options = parser.parse_args(arguments)
    generator = Generator(options.url, calls(options.mix, options.trace))
    begin_s, begin_cpu_s = time.monotonic(), time.process_time()
    if options.rate:
        asyncio.run(generator.open(options.seconds, options.rate))
    else:
        asyncio.run(generator.closed(options.seconds, options.callers))
    seconds = max(time.monotonic() - begin_s, options.seconds)
    print(json.dumps(summary(generator.outcomes, seconds, time.process_time() - begin_cpu_s)))


if __name__ == "__main__":
    main()
