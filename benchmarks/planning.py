"""How long does a bulk job look at a large input before its first row, and in how much memory?

    python -m benchmarks.planning [--files 10000] [--gigabytes 5] [--json]

Small Parquet files, and one file of JSON lines, are written to a temporary folder and cut into
blocks on a Ray of this machine. The memory is the driver's own, at its peak.
"""

import json
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from benchmarks.harness import report
from benchmarks.harness.sampler import Sampler
from deployments.bulk.reading.blocks import cut_input

BLOCK_ROWS = 512
MIB = 1024 * 1024
LINES = 10_000  # written again and again


def write_small_files(folder: Path, count: int) -> None:
    """Write Parquet files of 20 rows."""
    for number in range(count):
        ids = np.arange(number * 20, number * 20 + 20)
        table = pa.table({"id": ids, "text": [f"a text with the number {x}" for x in ids]})
        pq.write_table(table, folder / f"{number:06}.parquet")


def write_lines(path: Path, size_bytes: int) -> None:
    """Write lines of JSON with an id, a text and a price."""
    rows = [{"id": x, "text": f"text {x} " * 20, "price": x / 7} for x in range(LINES)]
    part = "".join(json.dumps(row) + "\n" for row in rows).encode()
    with path.open("wb") as file:
        while file.tell() < size_bytes:
            file.write(part)


def look_at(source: Path) -> dict[str, Any]:
    """Cut an input; return seconds, blocks, rows and the driver's peak memory."""
    before_bytes = psutil.Process().memory_info().rss
    start_s = time.perf_counter()
    with Sampler(lambda: psutil.Process().memory_info().rss, 0.1) as memory:
        plan = cut_input(str(source), BLOCK_ROWS)
    took_s = time.perf_counter() - start_s
    return {
        "seconds": round(took_s, 1),
        "blocks": len(plan.blocks),
        "rows": plan.num_rows,
        "driver_mib": round(max(rss for _, rss in memory.samples) / MIB),
        "driver_mib_before": round(before_bytes / MIB),
    }


def measure(files: int, gigabytes: float) -> dict[str, Any]:
    """Write both inputs, one after the other, and look at each."""
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "small")
        folder.mkdir()
        write_small_files(folder, files)
        results[f"{files} Parquet files"] = look_at(folder)
        path = Path(name, "large.jsonl")
        write_lines(path, int(gigabytes * 1e9))
        results[f"JSON lines, {gigabytes:g} GB"] = look_at(path)
    ray.shutdown()
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = report.command(__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--gigabytes", type=float, default=5)
    options = parser.parse_args(arguments)
    report.write(options, measure(options.files, options.gigabytes), report.show_values)


if __name__ == "__main__":
    main()
