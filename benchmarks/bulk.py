"""Does a bulk job keep the towers busy, and does it lose nothing when it is killed?

    python -m benchmarks.bulk [--texts 50000] [--images 2000] [--kill] [--json]

Makes texts of log-normal lengths from the gallery's phrases, and images of the gallery in varied
sizes and formats; every part of the texts has its share of the images. Then, on the shipped
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

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from benchmarks.harness import report
from benchmarks.harness.direct import Run, pixel_runs, text_runs
from benchmarks.harness.processes import descendants, proportional_bytes
from benchmarks.harness.sampler import Sampler
from deployments.model import ClipModel
from serve_app.gallery import gallery_images, phrases

MEDIAN_WORDS = 27  # about 67 tokens
SIGMA = 1.1
MOST_WORDS = 2000
FORMATS = (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"))
SIDES = (80, 900)
CHECKED_ROWS = 500
DIRECT_SHARE = 5  # the towers alone take every fifth part of the rows: the first
POLL_S = 0.5
WATCH_S = 5.0  # adding up the memory of all processes takes time from them
JOB = "from serve_app.bulk import bulk; bulk()"


def make_input(folder: Path, texts: int, images: int) -> Path:
    """Write the table and its images; returns the table."""
    random = np.random.default_rng(5)
    words = sorted({word for phrase in phrases() for word in phrase.text.split()})
    lengths = np.exp(random.normal(np.log(MEDIAN_WORDS), SIGMA, texts)).clip(1, MOST_WORDS)
    rows = [" ".join(random.choice(words, int(length))) for length in lengths]
    places: list[str | None] = [None] * texts
    gallery = [Image.open(image.path).convert("RGB") for image in gallery_images()]
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
    pixels = np.asarray(model.decode_images(data).pixels)
    start_s = time.perf_counter()
    _run(text_runs(model, texts) + pixel_runs(model, pixels))
    return time.perf_counter() - start_s, sum(len(ids) for ids in texts)


def _run(batches: Sequence[Run]) -> None:
    """Share both towers' batches out to as many threads as the job has replicas."""
    torch.set_num_threads(1)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for future in [pool.submit(batch) for batch in batches]:
            future.result()


def start_job(source: Path, output: Path, block_rows: int, *more: str) -> subprocess.Popen[str]:
    """Start the command in a process of its own."""
    replicas = str(os.cpu_count() or 1)
    command = [sys.executable, "-c", JOB, str(source), str(output), "--id", "id", "--json"]
    command += ["--text-replicas", replicas, "--block-rows", str(block_rows), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def run_job(source: Path, output: Path, rows: int, block_rows: int) -> dict[str, Any]:
    """Run the job to its end; returns its summary and its memory.

    Raises:
        RuntimeError: it failed.
    """
    job = start_job(source, output, block_rows)
    blocks = -(-rows // block_rows)

    def look() -> tuple[float, int]:
        """Return the share of rows done, and the memory of all processes."""
        done = len(list(output.glob("block-*"))) / blocks
        return done, proportional_bytes(descendants(job.pid))

    with Sampler(look, WATCH_S) as sampler:
        printed, _ = job.communicate()
    if job.returncode:
        raise RuntimeError(f"the job ended with {job.returncode}")

    def peak_bytes(first: float, last: float) -> int:
        samples = (sample for _, sample in sampler.samples)
        return max((total for share, total in samples if first <= share <= last), default=0)

    found: dict[str, Any] = json.loads(printed)
    early, late = peak_bytes(0.05, 0.1), peak_bytes(0.1, 1)
    return found | {"peak_bytes_to_10_percent": early, "peak_bytes_after": late}


def largest_difference(model: ClipModel, source: Path, output: Path) -> float:
    """Compare rows, evenly spread, and their images with the model; ids must be equal."""
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
    job.kill()
    job.communicate()
    printed, _ = start_job(source, output, block_rows, "--resume").communicate()
    ids = pq.read_table(output).sort_by("row")["id"].to_pylist()
    whole = ids == pq.read_table(source)["id"].to_pylist()
    resumed: dict[str, object] = json.loads(printed)
    return resumed | {"every_row_once": whole}


def run(folder: Path, texts: int, images: int, block_rows: int, kill: bool) -> dict[str, object]:
    """Measure everything."""
    source = make_input(folder, texts, images)
    table, model = pq.read_table(source), ClipModel.load("demo")
    model.warm_up()
    part = table.slice(0, -(-texts // DIRECT_SHARE))
    before_s, tokens = direct_s(model, part, folder)
    report.progress(f"towers alone: {before_s:.1f} s for {tokens:,} tokens of a part")
    job = run_job(source, folder / "out", texts, block_rows)
    report.progress(f"job: {job}")
    after_s, _ = direct_s(model, part, folder)
    direct = (before_s + after_s) / 2 * job["tokens"] / tokens
    results: dict[str, object] = {
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
        results["killed_and_resumed"] = kill_and_resume(
            source, folder / "killed", texts, block_rows
        )
    return results


def share_from_first_block_on(job: dict[str, Any], direct_s: float) -> float:
    """Return the job's share of the direct rate without the time in which its actors start."""
    rest = (job["rows"] - job["first_block_rows"]) / job["rows"]
    share: float = rest * direct_s / (job["seconds"] - job["first_block_s"])
    return share


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = report.command(__doc__)
    parser.add_argument("--texts", type=int, default=50_000)
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--block-rows", type=int, default=512)
    parser.add_argument("--kill", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        results = run(Path(folder), options.texts, options.images, options.block_rows, options.kill)
    report.write(options, results, report.show_values)


if __name__ == "__main__":
    main()
