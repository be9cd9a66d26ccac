"""What do the answers' encodings cost, and what share of a request is spent outside the towers?

`python -m benchmarks.wire [--width 1024] [--requests 10] [--json]` writes random rows in every
encoding and body type and times it, and the reading of texts (of words seen before) and pictures;
then it starts the service on this machine and reads, from the Server-Timing header of real
requests, where their time went. One request at a time.
"""

import argparse
import base64
import json
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import httpx
import numpy as np
import torch

from benchmarks.harness.machine import describe
from deployments.config import AppConfig
from deployments.images.sources import decode_base64
from deployments.messages import Embeddings, Usage
from deployments.model.architecture import Architecture
from deployments.model.output import finish
from deployments.model.tokenizer import TextTokenizer
from deployments.model.weights.source import DEMO
from serve_app.api import arrow
from serve_app.api import request as wire
from serve_app.api.rendering import ENCODINGS, JSON, NPY, Encoding, Form, render
from serve_app.api.values import Served
from serve_app.server import LOOPBACK, Ingress, free_port, prepare_environment, running

ROWS = (1, 32, 512)
PICTURE_BYTES = (20_000, 150_000, 2_000_000)
WORDS_PER_TEXT = 20
ROUNDS = 15
CONFIG = AppConfig.model_validate({"text": {"num_cpus": 0.5}, "router": {"num_cpus": 0.5}})


def forms() -> Iterator[tuple[Encoding, str]]:
    """Yield every encoding in JSON, and the bare bodies with those that differ there."""
    yield from ((encoding, JSON) for encoding in ENCODINGS)
    bare = (encoding for encoding in ENCODINGS if encoding != "base64")
    yield from ((encoding, media) for encoding in bare for media in (NPY, arrow.MEDIA_TYPE))


def rendering(width: int) -> list[dict[str, object]]:
    """Time the rendering of random unit rows; milliseconds and bytes."""
    rows = np.random.default_rng(0).normal(size=(max(ROWS), width)).astype(np.float32)
    rows = finish(rows)
    results: list[dict[str, object]] = []
    for encoding, media in forms():
        for num_rows in ROWS:
            answer = Embeddings(rows[:num_rows], Usage(num_rows, 0))
            form = Form((encoding,), "jina-clip-v2", 0)
            body = render(answer, form, media)
            milliseconds = median_ms(partial(render, answer, form, media))
            results.append(
                {
                    "body": media.rpartition("/")[2],
                    "encoding": encoding,
                    "rows": num_rows,
                    "ms": round(milliseconds, 3),
                    "bytes": len(body),
                }
            )
    return results


def parsing(served: Served, tokenizer: TextTokenizer) -> list[dict[str, object]]:
    """Time the reading of requests and what the tokenizer takes for them; milliseconds, bytes."""
    results: list[dict[str, object]] = []
    for num_rows in ROWS:
        body = request(num_rows)
        texts = json.loads(body)["input"]
        timed = {
            "ms": median_ms(partial(wire.parse, body, served)),
            "tokenise_ms": median_ms(partial(tokenizer.encode_each, texts)),
        }
        rounded = {name: round(value, 3) for name, value in timed.items()}
        results.append({"rows": num_rows, **rounded, "bytes": len(body)})
    return results


def pictures() -> list[dict[str, object]]:
    """Time the decoding of pictures in base64, and Python's own; milliseconds."""
    results: list[dict[str, object]] = []
    for num_bytes in PICTURE_BYTES:
        text = base64.b64encode(os.urandom(num_bytes)).decode()
        ms = median_ms(partial(decode_base64, "the picture", text, num_bytes))
        stdlib_ms = median_ms(partial(base64.b64decode, text, validate=True))
        row = {"bytes": num_bytes, "ms": round(ms, 4), "stdlib_ms": round(stdlib_ms, 4)}
        results.append({**row, "gain": round(stdlib_ms / ms, 1)})
    return results


def shares(requests: int) -> list[dict[str, object]]:
    """Ask a running service and return where the time of its requests goes, in milliseconds."""
    ingress = Ingress("stock", LOOPBACK, free_port())
    prepare_environment(ingress)
    results: list[dict[str, object]] = []
    with running(CONFIG, ingress) as url, httpx.Client(base_url=url, timeout=120) as client:
        for num_rows in ROWS:
            for encoding in ("float", "base64"):
                body = request(num_rows, encoding)
                asked = [ask(client, body) for _ in range(requests + 2)][2:]  # two to warm up
                names = sorted({name for one in asked for name in one})
                row: dict[str, object] = {"rows": num_rows, "encoding": encoding}
                for name in names:
                    row[name] = round(statistics.median(one.get(name, 0) for one in asked), 3)
                outside = [1 - one["towers"] / one["whole"] for one in asked]
                row["share_outside_towers"] = round(statistics.median(outside), 3)
                results.append(row)
    return results


def ask(client: httpx.Client, body: bytes) -> dict[str, float]:
    """Send one request; milliseconds by part, and as seen from outside."""
    start_s = time.perf_counter()
    answer = client.post("/v1/embeddings", content=body)
    whole_ms = 1000 * (time.perf_counter() - start_s)
    assert answer.status_code == 200, answer.text
    parts = re.findall(r"(\w+);dur=([\d.]+)", answer.headers["server-timing"])
    return {name: float(value) for name, value in parts} | {"whole": whole_ms}


def request(num_rows: int, encoding: str = "float") -> bytes:
    """Return a request of different texts."""
    texts = [f"{number} " + "word " * WORDS_PER_TEXT for number in range(num_rows)]
    return json.dumps({"input": texts, "embedding_type": encoding}).encode()


def median_ms(run: Callable[[], object]) -> float:
    """Return the median time of a call, after two that do not count."""
    times = []
    for _ in range(ROUNDS + 2):
        start_s = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start_s))
    return statistics.median(times[2:])


def table(rows: list[dict[str, object]]) -> str:
    """Return rows as a Markdown table."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines: list[list[object]] = [
        [*names],
        ["---"] * len(names),
        *([row.get(name, "") for name in names] for row in rows),
    ]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--requests", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    architecture = Architecture.read(DEMO)
    tokenizer = TextTokenizer(DEMO, architecture.text)
    found = {
        "machine": describe(torch.device("cpu")),
        "rendering": rendering(arguments.width),
        "parsing": parsing(Served(CONFIG, architecture), tokenizer),
        "pictures": pictures(),
        "shares": shares(arguments.requests),
    }
    if arguments.json:
        print(json.dumps(found))
        return
    print(found["machine"])
    for name in ("rendering", "parsing", "pictures", "shares"):
        print(f"\n{name}\n\n{table(found[name])}")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
