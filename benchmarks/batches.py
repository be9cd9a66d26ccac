"""What does a batch cost those who wait, and how fast is it?

    python -m benchmarks.batches [--lines 20000] [--seconds 5] [--rate 20] [--paced] [--json]

Sends queries at random times of a steady rate, in turns without a batch and beside one
(`/v1/batches`, one short text a line), then lets the batch finish. HAProxy, one Router, the shipped
checkpoint; or towers at the pace of an H100 in its place, which take no processor time.
"""

import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from statistics import median
from typing import Any

import httpx

from benchmarks.harness import report
from benchmarks.harness.callers import ask
from benchmarks.harness.outcomes import Outcome, in_ms, mean_stages_ms, quantile
from benchmarks.harness.servers import Setup, paced_towers, service
from deployments.config import AppConfig, BatchesConfig

ROUNDS = 8
POLL_S = 0.2


def lines(count: int) -> bytes:
    """Return an input of short texts, no two alike."""
    given = {"method": "POST", "url": "/v1/embeddings"}
    texts = (f"text number {number} of the batch" for number in range(count))
    rows = (
        given | {"custom_id": str(index), "body": {"input": [text]}}
        for index, text in enumerate(texts)
    )
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def uploaded(client: httpx.Client, data: bytes) -> str:
    """Keep an input; returns its id."""
    form = {"file": ("in.jsonl", data)}
    file = client.post("/v1/files", files=form, data={"purpose": "batch"}).raise_for_status().json()
    return str(file["id"])


def begun(client: httpx.Client, file_id: str) -> str:
    """Begin a batch, and wait for its first line; returns its path."""
    asked = {"input_file_id": file_id, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    batch: dict[str, str] = client.post("/v1/batches", json=asked).raise_for_status().json()
    path = f"/v1/batches/{batch['id']}"
    while not counts(client, path)[1]:
        time.sleep(POLL_S)
    return path


def counts(client: httpx.Client, path: str) -> tuple[str, int]:
    """Return a batch's status, and how many lines are done."""
    batch = client.get(path).raise_for_status().json()
    return batch["status"], batch["request_counts"]["completed"]


def ended(client: httpx.Client, path: str) -> tuple[str, int]:
    """Wait until a batch is over; returns its status and the lines done."""
    while (found := counts(client, path))[0] in ("validating", "in_progress", "finalizing"):
        time.sleep(POLL_S)
    return found


def beside(
    client: httpx.Client, file_id: str, queries: Callable[[], list[Outcome]]
) -> tuple[list[Outcome], float]:
    """Send queries while a batch runs, and end it; returns also its lines per second.

    Raises:
        RuntimeError: the batch was over too soon.
    """
    path = begun(client, file_id)
    before, start_s = counts(client, path)[1], time.monotonic()
    asked = queries()
    status, after = counts(client, path)
    seconds = time.monotonic() - start_s
    if status != "in_progress":
        raise RuntimeError("the batch was over before the queries: give it more lines")
    client.post(f"{path}/cancel").raise_for_status()
    ended(client, path)
    return asked, (after - before) / seconds


def compare(
    num_lines: int, seconds: float, rate: float, rounds: int, paced: bool
) -> dict[str, Any]:
    """Measure queries without and beside a batch, in turns, and the batch alone."""
    towers = paced_towers if paced else nullcontext
    without: list[list[Outcome]] = []
    with_batch: list[list[Outcome]] = []
    lines_per_s: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        config = Setup.on("cpu").config.model_copy(update={"batches": BatchesConfig(folder=folder)})
        config = AppConfig.model_validate(config)
        with service(config, towers=towers) as url, httpx.Client(base_url=url) as client:
            file_id = uploaded(client, lines(num_lines))
            queries = partial(ask, url, "query", seconds, "--rate", f"{rate:g}")
            queries()
            for turn in range(rounds):
                without.append(queries())
                asked, done_per_s = beside(client, file_id, queries)
                with_batch.append(asked)
                lines_per_s.append(done_per_s)
                report.progress(
                    f"round {turn}: {in_ms(p99_s(without[-1]))} ms without a batch, "
                    f"{in_ms(p99_s(asked))} beside {done_per_s:.0f} lines/s"
                )
            start_s = time.monotonic()
            status, completed = ended(client, begun(client, file_id))
            alone_s = time.monotonic() - start_s
    alone, both = described(without), described(with_batch)
    return {
        "queries": {"alone": alone, "beside": both},
        "p99_ratio": round(both["p99_ms"] / alone["p99_ms"], 2),
        "lines_per_s_beside_queries": round(median(lines_per_s)),
        "lines_per_s": round(completed / alone_s),
        "ended": status,
        "answered": f"{completed} of {num_lines}",
    }


def p99_s(asked: Sequence[Outcome]) -> float:
    """Return the 99th percentile of latencies; of none, or with one that failed, infinity."""
    latencies_s = [x.latency_s if x.is_right else math.inf for x in asked]
    return quantile(0.99, latencies_s) or math.inf


def described(rounds: Sequence[Sequence[Outcome]]) -> dict[str, Any]:
    """Return the latencies of all rounds together, p99 of each, and the mean of each stage."""
    together = [x for asked in rounds for x in asked]
    return {
        "answered": sum(x.is_right for x in together),
        "failed": sum(not x.is_right for x in together),
        "p50_ms": in_ms(quantile(0.5, [x.latency_s for x in together])),
        "p99_ms": in_ms(p99_s(together)),
        "p99_ms_by_round": [in_ms(p99_s(asked)) for asked in rounds],
        "stages_ms": mean_stages_ms([x for x in together if x.is_right]),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = report.command(__doc__)
    parser.add_argument("--lines", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=5, help="of a turn")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--rate", type=float, default=20, help="queries per second")
    parser.add_argument("--paced", action="store_true", help="towers at the pace of an H100")
    options = parser.parse_args(arguments)
    given = options.lines, options.seconds, options.rate, options.rounds, options.paced
    results = compare(*given)
    report.write(options, results, report.show_values)


if __name__ == "__main__":
    main()
