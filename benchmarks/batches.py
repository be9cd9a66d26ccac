"""What does a batch cost those who wait, and how fast is it?

    python -m benchmarks.batches [--lines 20000] [--seconds 10] [--rate 20] [--json]

Sends queries at a steady rate, in turns without a batch and beside one (`/v1/batches`, one short
text a line), then lets the batch finish. HAProxy, one Router, the shipped checkpoint.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import httpx

from benchmarks.harness import report
from benchmarks.harness.callers import send
from benchmarks.harness.servers import Setup, service
from deployments.config import AppConfig, BatchesConfig

ROUNDS = 3
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


def begun(client: httpx.Client, data: bytes) -> str:
    """Begin a batch; returns its path."""
    form = {"file": ("in.jsonl", data)}
    file = client.post("/v1/files", files=form, data={"purpose": "batch"}).raise_for_status().json()
    asked = {"input_file_id": file["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
    batch: dict[str, str] = client.post("/v1/batches", json=asked).raise_for_status().json()
    return f"/v1/batches/{batch['id']}"


def counts(client: httpx.Client, path: str) -> tuple[str, int]:
    """Return a batch's status, and how many lines are done."""
    batch = client.get(path).raise_for_status().json()
    return batch["status"], batch["request_counts"]["completed"]


def ended(client: httpx.Client, path: str) -> tuple[str, int]:
    """Wait until a batch is over; returns its status and the lines done."""
    while (found := counts(client, path))[0] in ("validating", "in_progress", "finalizing"):
        time.sleep(POLL_S)
    return found


def compare(num_lines: int, seconds: float, rate: float) -> dict[str, Any]:
    """Measure queries without and beside a batch, in turns, and the batch alone."""
    data = lines(num_lines)
    with tempfile.TemporaryDirectory() as folder:
        config = Setup.on("cpu").config.model_copy(update={"batches": BatchesConfig(folder=folder)})
        with service(AppConfig.model_validate(config)) as url, httpx.Client(base_url=url) as client:
            alone, beside, done = [], [], []
            for _ in range(ROUNDS):
                alone.append(send(url, "query", seconds, "--rate", f"{rate:g}"))
                path = begun(client, data)
                before, start_s = counts(client, path)[1], time.monotonic()
                beside.append(send(url, "query", seconds, "--rate", f"{rate:g}"))
                status, after = counts(client, path)
                if status != "in_progress":
                    raise RuntimeError("the batch was over before the queries: give it more lines")
                done.append((after - before) / (time.monotonic() - start_s))
                client.post(f"{path}/cancel").raise_for_status()
                ended(client, path)
            start_s = time.monotonic()
            status, completed = ended(client, begun(client, data))
            alone_s = time.monotonic() - start_s
    p99_ms = {"alone": [x["p99_ms"] for x in alone], "beside": [x["p99_ms"] for x in beside]}
    return {
        "query_p50_ms": {"alone": _median(alone, "p50_ms"), "beside": _median(beside, "p50_ms")},
        "query_p99_ms": p99_ms,
        "p99_ratio": round(median(p99_ms["beside"]) / median(p99_ms["alone"]), 2),
        "lines_per_s_beside_queries": round(median(done)),
        "lines_per_s": round(completed / alone_s),
        "ended": status,
        "answered": f"{completed} of {num_lines}",
    }


def _median(runs: list[dict[str, Any]], name: str) -> float:
    return median(float(run[name]) for run in runs)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = report.command(__doc__)
    parser.add_argument("--lines", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rate", type=float, default=20, help="queries per second")
    options = parser.parse_args(arguments)
    results = compare(options.lines, options.seconds, options.rate)
    report.write(options, results, report.show_values)


if __name__ == "__main__":
    main()
