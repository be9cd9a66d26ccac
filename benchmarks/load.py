"""The load generator: request mixes, sent in a closed or an open loop, from a process of its own.

    python -m benchmarks.load --url http://127.0.0.1:8000 --mix query --seconds 8 --callers 1
    python -m benchmarks.load --url ... --mix trace --trace FILE --speedup 2 --seconds 20

Prints JSON: what became of the requests, latencies, and the share of one core that the generator
itself used (near 1 it would have been the limit).
"""

import argparse
import asyncio
import base64
import json
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path

import aiohttp
import numpy as np

from benchmarks.outcomes import Outcome, summary
from deployments.plan.traffic import read_trace
from serve_app.gallery import gallery_images

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
PATIENCE_S = 60.0  # also the service's own limit
MAX_TRACE_TOKENS = 8000
TOKENS_PER_WORD = 1.4  # of the shipped tokenizer on these words, measured
MIX = re.compile(r"(\d+ texts?)?(?: \+ )?(\d+ images?)?")


@dataclass(frozen=True)
class Call:
    """One request's body, the items in it, and about how many tokens its texts have."""

    body: bytes
    items: int
    tokens: int


def text(chance: random.Random, words: int) -> dict[str, str]:
    """Return a text of random words."""
    return {"text": " ".join(chance.choices(WORDS, k=words))}


def calls(mix: str, lengths: Sequence[int] = ()) -> Iterator[Call]:
    """Yield requests without end; a fixed seed makes them the same in every run.

    Args:
        mix: `query` (one text of 8 words), `trace` (one text of the next of `lengths` words), or
            counts such as `32 texts`, `8 images`, `16 texts + 4 images`.
        lengths: of the texts of a trace.
    """
    chance = random.Random(0)
    images = distinct_images()
    words = cycle(lengths or [8])
    while True:
        if mix in ("query", "trace"):
            items = [text(chance, next(words))]
        else:
            texts, shown = counts(mix)
            items = [text(chance, chance.randint(4, 40)) for _ in range(texts)]
            items += [{"image": next(images)} for _ in range(shown)]
        body = {"model": "jina-clip-v2", "input": items, "embedding_type": "base64"}
        sent = sum(len(item.get("text", "").split()) for item in items)
        yield Call(json.dumps(body).encode(), len(items), round(sent * TOKENS_PER_WORD))


def distinct_images() -> Iterator[str]:
    """Yield the gallery's pictures again and again, no two alike, in base64.

    A Router computes what it is asked for twice at a time only once; decoders do not read what
    comes after a picture.
    """
    files = [picture.path.read_bytes() for picture in gallery_images()]
    for number in count():
        yield base64.b64encode(files[number % len(files)] + number.to_bytes(8, "big")).decode()


def counts(mix: str) -> tuple[int, int]:
    """Return the texts and the pictures in a request of a mix.

    Raises:
        ValueError: it is not of that form.
    """
    found = MIX.fullmatch(mix)
    if not mix or not found:
        raise ValueError(f"{mix!r} is not a mix such as '16 texts + 4 images'")
    texts, images = (int(part.split()[0]) if part else 0 for part in found.groups())
    return texts, images


def trace_lengths(path: Path) -> list[int]:
    """Return the texts of a trace in words, at most as long as the service takes."""
    tokens = np.minimum(read_trace(path).text.cost, MAX_TRACE_TOKENS)
    return [max(1, int(length / TOKENS_PER_WORD)) for length in tokens]


def poisson(seconds: float, per_s: float) -> Iterator[float]:
    """Yield times at random at a mean rate."""
    chance, due_s = random.Random(1), 0.0
    while (due_s := due_s + chance.expovariate(per_s)) < seconds:
        yield due_s


def replayed(seconds: float, path: Path, speedup: float) -> Iterator[float]:
    """Yield the times of a trace, run faster."""
    times_s = read_trace(path).text.arrival_s / speedup
    yield from times_s[times_s < seconds].tolist()


class Generator:
    """Sends requests and remembers what became of them."""

    def __init__(self, url: str, requests: Iterator[Call], patience_s: float = PATIENCE_S) -> None:
        self.url = f"{url}/v1/embeddings"
        self.requests = requests
        self.patience = aiohttp.ClientTimeout(total=patience_s)
        self.headers = {"content-type": "application/json", "x-timeout-s": str(patience_s)}
        self.outcomes: list[Outcome] = []

    async def send(self, client: aiohttp.ClientSession, scheduled_s: float | None = None) -> None:
        """Send one request; in an open loop its latency counts from when it was due."""
        call = next(self.requests)
        begin = scheduled_s or time.monotonic()
        late_s = time.monotonic() - begin
        stages, received, status = "", 0, 0
        try:
            request = client.post(
                self.url, data=call.body, headers=self.headers, timeout=self.patience
            )
            async with request as answer:
                received = len(await answer.read())
                status, stages = answer.status, answer.headers.get("server-timing", "")
        except (aiohttp.ClientError, TimeoutError):
            pass
        took_s = time.monotonic() - begin
        carried = call.items, call.tokens, received
        self.outcomes.append(Outcome(status, late_s, took_s, *carried, stages))

    async def closed(self, seconds: float, callers: int) -> None:
        """Let callers ask, each waiting for its answer."""
        end = time.monotonic() + seconds

        async def caller() -> None:
            while time.monotonic() < end:
                await self.send(client)

        async with session() as client:
            await asyncio.gather(*(caller() for _ in range(callers)))

    async def open(self, times_s: Iterator[float]) -> None:
        """Send when it is time to, whatever becomes of the requests before."""
        begin_s, tasks = time.monotonic(), []
        async with session() as client:
            for due_s in times_s:
                await asyncio.sleep(max(0.0, begin_s + due_s - time.monotonic()))
                tasks.append(asyncio.create_task(self.send(client, begin_s + due_s)))
            await asyncio.gather(*tasks)


def session() -> aiohttp.ClientSession:
    """Return a client without a limit on its connections."""
    connector = aiohttp.TCPConnector(limit=0)
    return aiohttp.ClientSession(connector=connector)


def main(arguments: Sequence[str] | None = None) -> None:
    """Send and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--mix", default="query")
    parser.add_argument("--trace", type=Path, help="CSV with times and tokens, for the mix 'trace'")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--callers", type=int, default=1)
    parser.add_argument("--rate", type=float, help="requests per second: an open loop")
    parser.add_argument("--speedup", type=float, help="of the trace's own times: an open loop")
    parser.add_argument(
        "--patience-s", type=float, default=PATIENCE_S, help="say so, and leave after it"
    )
    options = parser.parse_args(arguments)
    lengths = trace_lengths(options.trace) if options.trace else ()
    generator = Generator(options.url, calls(options.mix, lengths), options.patience_s)
    begin_s, begin_cpu_s = time.monotonic(), time.process_time()
    if options.speedup:
        asyncio.run(generator.open(replayed(options.seconds, options.trace, options.speedup)))
    elif options.rate:
        asyncio.run(generator.open(poisson(options.seconds, options.rate)))
    else:
        asyncio.run(generator.closed(options.seconds, options.callers))
    seconds = max(time.monotonic() - begin_s, options.seconds)
    print(json.dumps(summary(generator.outcomes, seconds, time.process_time() - begin_cpu_s)))


if __name__ == "__main__":
    main()
