"""What do the answers' encodings cost, and what share of a request is spent outside the towers?

    python -m benchmarks.wire [--width 1024] [--requests 10] [--json]

Writes random rows in every encoding and body type and times it, and the reading of texts (of words
seen before) and images; then starts the service and reads, from the Server-Timing header of real
requests, where their time went. One request at a time.
"""

import base64
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median

import numpy as np

from benchmarks.harness import report
from benchmarks.harness.callers import ask
from benchmarks.harness.mixes import calls
from benchmarks.harness.outcomes import Outcome
from benchmarks.harness.servers import service
from deployments.config import AppConfig
from deployments.images.sources import decode_base64
from deployments.messages import Embeddings, Usage
from deployments.model.architecture import Architecture
from deployments.model.output import finish
from deployments.model.tokenizer import TextTokenizer
from deployments.model.weights.source import DEMO
from serve_app.api import arrow
from serve_app.api.rendering import ENCODINGS, JSON, NPY, Encoding, Form, render
from serve_app.api.request import parse
from serve_app.api.served import Served

ROWS = (1, 32, 512)
IMAGE_BYTES = (20_000, 150_000, 2_000_000)
MIX = "{} texts of 20 words"
WARM_UP = 2  # requests
LONG_S = 600.0  # the number of requests ends a run, not the time
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
            form = Form((encoding,), "jina-clip-v2", 0, media)
            body = render(answer, form)
            milliseconds = median_ms(partial(render, answer, form))
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
        body = next(calls(MIX.format(num_rows), encoding="float")).body
        texts = [item["text"] for item in json.loads(body)["input"]]
        timed = {
            "ms": median_ms(partial(parse, body, served)),
            "tokenise_ms": median_ms(partial(tokenizer.encode_each, texts)),
        }
        rounded = {name: round(value, 3) for name, value in timed.items()}
        results.append({"rows": num_rows, **rounded, "bytes": len(body)})
    return results


def images() -> list[dict[str, object]]:
    """Time the decoding of images in base64, and Python's own; milliseconds."""
    results: list[dict[str, object]] = []
    for num_bytes in IMAGE_BYTES:
        text = base64.b64encode(os.urandom(num_bytes)).decode()
        ms = median_ms(partial(decode_base64, "the image", text, num_bytes))
        stdlib_ms = median_ms(partial(base64.b64decode, text, validate=True))
        row = {"bytes": num_bytes, "ms": round(ms, 4), "stdlib_ms": round(stdlib_ms, 4)}
        results.append({**row, "gain": round(stdlib_ms / ms, 1)})
    return results


def shares(requests: int) -> list[dict[str, object]]:
    """Ask a running service and return where the time of its requests goes, in milliseconds."""
    results: list[dict[str, object]] = []
    with service(CONFIG, "stock") as url:
        for num_rows in ROWS:
            for encoding in ("float", "base64"):
                options = ["--encoding", encoding, "--requests", str(requests + WARM_UP)]
                outcomes = ask(url, MIX.format(num_rows), LONG_S, *options)[WARM_UP:]
                row: dict[str, object] = {"rows": num_rows, "encoding": encoding}
                results.append(row | medians(outcomes))
    return results


def medians(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """Return the median of each stage, of the whole, and of the share outside the towers.

    Raises:
        RuntimeError: a request was not answered.
    """
    if not all(outcome.is_right for outcome in outcomes):
        raise RuntimeError(f"not every request was answered: {outcomes}")
    timed = [outcome.stages_ms | {"whole": 1e3 * outcome.latency_s} for outcome in outcomes]
    names = sorted({name for one in timed for name in one})
    row: dict[str, object] = {
        name: round(median(one.get(name, 0) for one in timed), 3) for name in names
    }
    outside = median(1 - one["towers"] / one["whole"] for one in timed)
    return row | {"share_outside_towers": round(outside, 3)}


def median_ms(run: Callable[[], object]) -> float:
    """Return the median time of a call, after two that do not count."""
    times = []
    for _ in range(ROUNDS + 2):
        start_s = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start_s))
    return median(times[2:])


def table(rows: list[dict[str, object]]) -> str:
    """Return rows as a Markdown table."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines: list[list[object]] = [
        [*names],
        ["---"] * len(names),
        *([row.get(name, "") for name in names] for row in rows),
    ]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def show(results: dict[str, list[dict[str, object]]]) -> None:
    """Print a table for each part."""
    for name, rows in results.items():
        print(f"\n{name}\n\n{table(rows)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = report.command(__doc__)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--requests", type=int, default=10)
    options = parser.parse_args(arguments)
    architecture = Architecture.read(DEMO)
    tokenizer = TextTokenizer(DEMO, architecture.text)
    results = {
        "rendering": rendering(options.width),
        "parsing": parsing(Served(CONFIG, architecture), tokenizer),
        "images": images(),
        "shares": shares(options.requests),
    }
    report.write(options, results, show)


if __name__ == "__main__":
    main()
