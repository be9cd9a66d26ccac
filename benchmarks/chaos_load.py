"""The callers of benchmarks.chaos: a steady load from a process of its own, without retries.

Each line of the output is one request in JSON: when it was sent and when it ended on the machine's
monotonic clock, its status (0 without an answer), its error code and whether the rows were right.
"""

import argparse
import asyncio
import base64
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, TextIO

import aiohttp
import numpy as np

from benchmarks.load import session, text
from serve_app.gallery import gallery_images

DIMENSIONS = 64
PROBE = {"text": "red apple"}
MIXES = {"query": (1, 0), "texts": (31, 0), "mixed": (7, 2), "image": (0, 1)}
PROBED = ("texts",)  # mixes that carry the probe; a Router computes what is asked twice only once
SHARES = {"query": 6, "texts": 2, "mixed": 1, "image": 1}
MIN_COSINE = 0.999  # of the probe's row with the one before the first fault


@dataclass(frozen=True)
class Outcome:
    """What became of one request."""

    mix: str
    sent_s: float
    ended_s: float
    status: int
    code: str


def bodies(mix: str) -> Iterator[tuple[str, bytes, int]]:
    """Yield name, body and number of items of a mix without end; the same in every run."""
    chance = random.Random(0)
    images = cycle([base64.b64encode(x.path.read_bytes()).decode() for x in gallery_images()])
    names = [mix] if mix in MIXES else [name for name in MIXES for _ in range(SHARES[name])]
    while True:
        name = chance.choice(names)
        texts, shown = MIXES[name]
        items = [PROBE] if name in PROBED else []
        items += [text(chance, chance.randint(4, 40)) for _ in range(texts)]
        items += [{"image": next(images)} for _ in range(shown)]
        body = {"input": items, "dimensions": DIMENSIONS, "embedding_type": "base64"}
        yield name, json.dumps(body).encode(), len(items)


class Callers:
    """Sends requests at a steady rate, and writes down what became of each."""

    def __init__(self, url: str, output: TextIO) -> None:
        self._url = f"{url}/v1/embeddings"
        self._output = output
        self._expected: Any = None  # Any: rows, whose numpy type says nothing here

    async def run(self, seconds: float, per_s: float, mix: str) -> None:
        """Send at a mean rate at random times (Poisson), whatever becomes of the requests."""
        chance, due_s = random.Random(1), time.monotonic()
        end, tasks, requests = due_s + seconds, set(), bodies(mix)
        async with session() as client:
            while (due_s := due_s + chance.expovariate(per_s)) < end:
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                task = asyncio.create_task(self._ask(client, *next(requests)))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)

    async def _ask(self, client: aiohttp.ClientSession, mix: str, body: bytes, items: int) -> None:
        sent_s = time.monotonic()
        status, code = 0, ""
        try:
            headers = {"content-type": "application/json"}
            async with client.post(self._url, data=body, headers=headers) as answer:
                content = await answer.read()
                status = answer.status
                code = self._fault(mix, content, items) if status == 200 else _code(content)
        except (aiohttp.ClientError, TimeoutError) as error:
            code = type(error).__name__
        outcome = Outcome(mix, sent_s, time.monotonic(), status, code)
        self._output.write(json.dumps(asdict(outcome)) + "\n")

    def _fault(self, mix: str, content: bytes, items: int) -> str:
        """Say what is wrong with an answer, nothing where it is right."""
        data = json.loads(content)["data"]
        if [row["index"] for row in data] != list(range(items)):
            return "wrong number or order"
        if mix not in PROBED:
            return ""
        probe = np.frombuffer(base64.b64decode(data[0]["embedding"]), np.float32)
        if self._expected is None:
            self._expected = probe
        return "" if float(probe @ self._expected) >= MIN_COSINE else "wrong row"


def _code(content: bytes) -> str:
    """Return an error's code; its text where the answer is not the service's own."""
    try:
        return str(json.loads(content)["code"])
    except (ValueError, KeyError, TypeError):
        return content[:60].decode(errors="replace").strip() or "no body"


def main(arguments: Sequence[str] | None = None) -> None:
    """Send and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rate", type=float, required=True, help="requests per second")
    parser.add_argument("--mix", choices=("all", *MIXES), default="all")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    with options.output.open("w", buffering=1) as output:
        asyncio.run(Callers(options.url, output).run(options.seconds, options.rate, options.mix))


if __name__ == "__main__":
    main()
