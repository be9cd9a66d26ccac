"""Does a bulk job keep the towers busy, and does it lose nothing when it is killed?

    python -m benchmarks.bulk [--texts 50000] [--images 2000] [--kill] [--json FILE]

Makes texts of log-normal lengths from the gallery's phrases, and pictures of the gallery in varied
sizes and formats; every part of the texts has its share of the pictures. Then, on the shipped
checkpoint:

1. the towers alone, in one process with as many threads as the job has tower replicas, on token
   ids and pixels of a fifth of the rows, which lie ready: the direct rate;
2. the job with the same threads, its summary, the memory of all its processes over time, and Ray
   Data's account of its stages;
3. the towers alone again, since other work may share the machine: the job is compared with the
   mean of both;
4. the rows of the job against `ClipModel`, each within 1e-5;
5. with `--kill`, the job again, its driver killed halfway with SIGKILL and resumed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from benchmarks.machine import describe
from benchmarks.processes import descendants
from deployments.model import ClipModel
from deployments.model.tokenizer import TokenIds
from deployments.model.towers.packing import text_batches
from serve_app.gallery import gallery_images, phrases

MEDIAN_WORDS = 27  # about 67 tokens
SIGMA = 1.1
MOST_WORDS = 2000
TOKENS_PER_BATCH, TEXTS_PER_BATCH, IMAGES_PER_BATCH = 16384, 512, 32
FORMATS = (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"))
SIDES = (80, 900)
CHECKED_ROWS = 500
DIRECT_SHARE = 5  # the towers alone take every fifth part of the rows: the first
POLL_S = 0.5
WATCH_S = 5.0  # adding up the memory of all processes takes time from them
JOB = "from serve_app.bulk import bulk; bulk()"


@dataclass
class Memory:
    """Memory of the processes below one, with the share of rows done at the time."""

    samples: list[tuple[float, int]] = field(default_factory=list)

    def watch(self, job: subprocess.Popen[str], done: Callable[[], float]) -> None:
        """Sample until the process ends; pages that processes share are split among them."""
        while job.poll() is None:
            self.samples.append(
                (done(), sum(process.pss_bytes for process in descendants(job.pid)))
            )
            time.sleep(WATCH_S)

    def peak_bytes(self, first: float, last: float) -> int:
        """Return the peak while the share of finished rows was within bounds."""
        return max((total for share, total in self.samples if first <= share <= last), default=0)


def make_input(folder: Path, texts: int, images: int) -> Path:
    """Write the table and its pictures; returns the table."""
    random = np.random.default_rng(5)
    words = sorted({word for phrase in phrases() for word in phrase.text.split()})
    lengths = np.exp(random.normal(np.log(MEDIAN_WORDS), SIGMA, texts)).clip(1, MOST_WORDS)
    rows = [" ".join(random.choice(words, int(length))) for length in lengths]
    places: list[str | None] = [None] * texts
    gallery = [Image.open(picture.path).convert("RGB") for picture in gallery_images()]
    for index in range(images):
        extension, kind = FORMATS[index % len(FORMATS)]
        name = f"{index}.{extension}"
        width, height = random.integers(*SIDES, 2).tolist()
        gallery[index % len(gallery)].resize((width, height)).save(folder / name, kind)
        places[index * texts // images] = name
    path = folder / "input.parquet"
    names = [f"row {index}" for index in range(texts)]
    pq.write_table(pa.table({"id": names, "text": rows, "image": places}), path)
    return path


def direct_s(model: ClipModel, table: pa.Table, folder: Path) -> tuple[float, int]:
    """Return the seconds of both towers alone, side by side, and the tokens they took."""
    texts = model.tokenizer.encode(table["text"].to_pylist())
    sources = [x for x in table["image"].to_pylist() if x is not None]
    data = [(folder / name).read_bytes() for name in sources]
    pixels = model.decode_images(data).pixels
    start_s = time.perf_counter()
    _run_towers(model, texts, np.asarray(pixels))
    return time.perf_counter() - start_s, sum(len(ids) for ids in texts)


def _run_towers(model: ClipModel, texts: list[TokenIds], pixels: np.ndarray) -> None:
    """Share both towers' batches out to as many threads as the job has replicas."""
    batches: list[Callable[[], object]] = [
        partial(model.embed_tokens, [texts[i] for i in batch])
        for batch in text_batches(texts, TEXTS_PER_BATCH, TOKENS_PER_BATCH)
    ]
    batches += [
        partial(model.embed_pixels, pixels[start : start + IMAGES_PER_BATCH])
        for start in range(0, len(pixels), IMAGES_PER_BATCH)
    ]
    threads = os.cpu_count() or 1
    torch.set_num_threads(1)
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(batch) for batch in batches]:
            future.result()


def start_job(source: Path, output: Path, block_rows: int, *more: str) -> subprocess.Popen[str]:
    """Start the command in a process of its own."""
    replicas = str(os.cpu_count() or 1)
    command = [sys.executable, "-c", JOB, str(source), str(output), "--id", "id", "--json"]
    command += ["--text-replicas", replicas, "--block-rows", str(block_rows), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def run_job(source: Path, output: Path, rows: int, block_rows: int) -> dict[str, Any]:
    """Run the job to its end; returns its summary and its memory."""
    job = start_job(source, output, block_rows)
    memory = Memory()
    blocks = -(-rows // block_rows)

    def done() -> float:
        return len(list(output.glob("block-*"))) / blocks

    watcher = threading.Thread(target=memory.watch, args=(job, done))
    watcher.start()
    printed, _ = job.communicate()
    watcher.join()
    if job.returncode:
        raise RuntimeError(f"the job ended with {job.returncode}")
    early, late = memory.peak_bytes(0.05, 0.1), memory.peak_bytes(0.1, 1)
    found: dict[str, Any] = json.loads(printed)
    return found | {"peak_bytes_to_10_percent": early, "peak_bytes_after": late}


def largest_difference(model: ClipModel, source: Path, output: Path) -> float:
    """Compare rows, evenly spread, and all their pictures with the model; ids must be equal."""
    given, found = pq.read_table(source), pq.read_table(output)
    found = found.sort_by("row")
    if found["id"].to_pylist() != given["id"].to_pylist():
        raise RuntimeError("the ids of the output are not those of the input")
    places = np.linspace(0, given.num_rows - 1, min(CHECKED_ROWS, given.num_rows)).astype(int)
    texts = model.encode_text([given["text"][i].as_py() for i in places])
    vectors = np.array([found["text_embedding"][i].as_py() for i in places])
    largest = float(np.abs(texts - vectors).max())
    names = [(i, x) for i, x in enumerate(given["image"].to_pylist()) if x][:CHECKED_ROWS]
    if names:
        images = model.encode_image([(source.parent / name).read_bytes() for _, name in names])
        vectors = np.array([found["image_embedding"][i].as_py() for i, _ in names])
        largest = max(largest, float(np.abs(images - vectors).max()))
    return largest


def kill_and_resume(source: Path, output: Path, rows: int, block_rows: int) -> dict[str, object]:
    """Kill the driver halfway, resume; returns what the second run says."""
    job = start_job(source, output, block_rows)
    while len(list(output.glob("block-*"))) < rows // block_rows // 2:
        time.sleep(POLL_S)
    os.kill(job.pid, signal.SIGKILL)
    job.communicate()
    printed, _ = start_job(source, output, block_rows, "--resume").communicate()
    ids = pq.read_table(output).sort_by("row")["id"].to_pylist()
    whole = ids == pq.read_table(source)["id"].to_pylist()
    resumed: dict[str, object] = json.loads(printed)
    return resumed | {"every_row_once": whole}


def run(folder: Path, texts: int, images: int, block_rows: int, kill: bool) -> dict[str, object]:
    """Measure everything; returns what `--json` writes."""
    source = make_input(folder, texts, images)
    table, model = pq.read_table(source), ClipModel.load("demo")
    model.warm_up()
    part = table.slice(0, -(-texts // DIRECT_SHARE))
    before_s, tokens = direct_s(model, part, folder)
    print(f"towers alone: {before_s:.1f} s for {tokens:,} tokens of a part", flush=True)
    job = run_job(source, folder / "out", texts, block_rows)
    print(f"job: {job}", flush=True)
    after_s, _ = direct_s(model, part, folder)
    direct = (before_s + after_s) / 2 * job["tokens"] / tokens
    report: dict[str, object] = {
        "machine": describe(torch.device("cpu")),
        "texts": texts,
        "images": images,
        "direct_tokens": tokens,
        "direct_s": [before_s, after_s],
        "job": job,
        "share_of_direct_rate": direct / job["seconds"],
        "share_from_first_block_on": share_from_first_block_on(job, direct),
        "largest_difference": largest_difference(model, source, folder / "out"),
    }
    if kill:
        report["killed_and_resumed"] = kill_and_resume(source, folder / "killed", texts, block_rows)
    return report


def share_from_first_block_on(job: dict[str, Any], direct_s: float) -> float:
    """Return the job's share of the direct rate without the time in which its actors start."""
    rest = (job["rows"] - job["first_block_rows"]) / job["rows"]
    share: float = rest * direct_s / (job["seconds"] - job["first_block_s"])
    return share


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=50_000)
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--block-rows", type=int, default=512)
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), options.texts, options.images, options.block_rows, options.kill)
    for name, value in report.items():
        print(f"{name}: {value}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
