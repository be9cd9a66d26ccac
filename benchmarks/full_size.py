"""Are the native towers right at the published size, and what does loading them take?

Writes a random checkpoint with the names, shapes and dtype of the published one (999 tensors,
1.73 GB), loads it strictly, and compares native rows with those of transformers and timm. Each
step runs in a process of its own, so that one tower is in memory at a time and peaks do not mix.
A peak is Linux's high-water mark of resident memory, file pages included, above that of the
imports. In each precision, a tower is loaded in a process of its own for its memory.

    python -m benchmarks.full_size [--json] [--keep FOLDER]

Needs the extra `reference`, 2 GB of disk and 8 GB of memory. Exits with 1 if a bound is broken.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from benchmarks.harness import random_checkpoint, report
from deployments.model.clip import ClipModel
from deployments.model.errors import CheckpointError
from deployments.model.output import finish
from deployments.model.towers.linear import int8_fault
from deployments.model.weights.checkpoint import Checkpoint, expected_shapes
from deployments.model.weights.source import WEIGHTS

MAX_DIFFERENCE = 1e-5
MAX_PEAK_RATIO = 1.1
PRECISIONS = ("float32", "bfloat16", "int8")
MAX_INT8_BYTES = {"text": 0.9e9, "vision": 0.5e9}  # loading one tower, above the imports
PUBLISHED_TENSORS = 999
PUBLISHED_BYTES = 1_730_688_642
TEXT_TOKENS = (7, 33, 600, 600)


def load(folder: Path) -> dict[str, float]:
    """Load both towers; return the seconds, and the peak of memory above that of the imports."""
    before = _peak_bytes()
    start = time.perf_counter()
    model = ClipModel.load(folder)
    seconds = time.perf_counter() - start
    peak = _peak_bytes() - before
    shapes = expected_shapes(model.architecture)
    # The adapter's factors are merged while loading and not kept.
    kept = [math.prod(shape) for name, shape in shapes.items() if ".lora_" not in name]
    return {
        "num_tensors": len(shapes),
        "load_s": seconds,
        "peak_bytes": peak,
        "weight_bytes": 4 * sum(kept),  # of which the word embedding, 1 GB, stays in the file
        "refuses_a_renamed_tensor": _refuses_a_renamed_tensor(folder),
    }


def memory(folder: Path, tower: str, dtype: str) -> dict[str, float]:
    """Load one tower in one precision; return its memory above that of the imports, in bytes."""
    before = _peak_bytes()
    model = ClipModel.load(
        folder, towers=("text",) if tower == "text" else ("vision",), dtype=dtype
    )
    peak, loaded = _peak_bytes(), psutil.Process().memory_info().rss
    if tower == "text":
        model.embed_tokens(_token_ids(model.architecture.text.vocab_size)[:2])
    else:
        model.embed_pixels(_pixels(model.architecture.vision.image_size)[:1])
    sizes = {"loading": peak, "loaded": loaded, "peak after one batch": _peak_bytes()}
    return {name: size - before for name, size in sizes.items()}


def _peak_bytes() -> int:
    """Return this process's high-water mark of resident memory, which Linux gives in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _refuses_a_renamed_tensor(folder: Path) -> bool:
    """Rename one tensor in the file's header, see whether loading names it, and mend the file."""
    with (folder / WEIGHTS).open("r+b") as file:
        head = file.read(1 << 20)
        place = head.index(b'"logit_scale"')
        try:
            file.seek(place)
            file.write(b'"logit_scalf"')
            file.flush()
            Checkpoint(folder)
        except CheckpointError as error:
            return "missing logit_scale" in str(error) and "unexpected logit_scalf" in str(error)
        finally:
            file.seek(place)
            file.write(b'"logit_scale"')
    return False


def embed(folder: Path, tower: str, implementation: str) -> dict[str, float]:
    """Load one tower in one implementation and save its normalised rows in the folder."""
    model = ClipModel.load(
        folder,
        implementation="reference" if implementation == "reference" else "native",
        towers=("text",) if tower == "text" else ("vision",),
    )
    start = time.perf_counter()
    if tower == "text":
        rows = model.embed_tokens(_token_ids(model.architecture.text.vocab_size))
    else:
        rows = model.embed_pixels(_pixels(model.architecture.vision.image_size))
    seconds = time.perf_counter() - start
    np.save(folder / f"{tower}-{implementation}.npy", finish(rows))
    return {"forward_s": seconds}


def _token_ids(vocab_size: int) -> list[NDArray[np.int32]]:
    """Return texts over the whole vocabulary; the last has pads inside and at its end."""
    random = np.random.default_rng(12)
    texts = [random.integers(3, vocab_size, size=n, dtype=np.int32) for n in TEXT_TOKENS]
    texts[-1][[5, 6]] = 1
    texts[-1][-60:] = 1
    return texts


def _pixels(size: int) -> NDArray[np.uint8]:
    """Return two images: noise, and a ramp."""
    noise = np.random.default_rng(13).integers(0, 256, (size, size, 3), dtype=np.uint8)
    ramp = np.linspace(0, 255, size).astype(np.uint8)[:, None, None]
    return np.stack([noise, np.broadcast_to(ramp, noise.shape)])


def compare(native: NDArray[np.float64], reference: NDArray[np.float64]) -> dict[str, float]:
    """Return how far native rows are from the reference, and different inputs from each other."""
    pairs = zip(*np.triu_indices(len(reference), k=1), strict=True)
    apart = [float(np.abs(reference[i] - reference[j]).max()) for i, j in pairs]
    lengths = np.linalg.norm(native, axis=1) * np.linalg.norm(reference, axis=1)
    cosines = (native * reference).sum(axis=1) / lengths
    return {
        "max_abs_difference": float(np.abs(native - reference).max()),
        "min_cosine": float(cosines.min()),
        "closest_two_inputs": min(apart),
    }


def step(*arguments: str) -> dict[str, Any]:
    """Run one step of this module in a new process and return what it prints."""
    command = [sys.executable, "-m", "benchmarks.full_size", "--step", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure(folder: Path) -> dict[str, Any]:
    """Write a checkpoint into `folder`, run every step on it and return the findings."""
    report.progress("writing the checkpoint")
    start = time.perf_counter()
    random_checkpoint.write(folder)
    findings: dict[str, Any] = {
        "write_s": time.perf_counter() - start,
        "file_bytes": (folder / WEIGHTS).stat().st_size,
    }
    report.progress("loading both towers")
    findings |= step("load", str(folder))
    findings["peak_ratio"] = findings["peak_bytes"] / findings["weight_bytes"]
    findings["memory"] = {}
    for tower, dtype in product(("text", "vision"), PRECISIONS):
        if dtype == "int8" and int8_fault(torch.device("cpu")):
            continue
        report.progress(f"memory of the {tower} tower in {dtype}")
        findings["memory"][f"{tower} {dtype}"] = step("memory", str(folder), tower, dtype)
    for tower in ("text", "vision"):
        seconds = {}
        for implementation in ("native", "reference"):
            report.progress(f"{tower} tower, {implementation}")
            done = step("embed", str(folder), tower, implementation)
            seconds[f"{implementation}_s"] = done["forward_s"]
        rows = [
            np.load(folder / f"{tower}-{x}.npy").astype(np.float64) for x in ("native", "reference")
        ]
        findings[tower] = compare(*rows) | seconds
    return findings


def broken_bounds(findings: dict[str, Any]) -> list[str]:
    """Return a sentence for each bound that does not hold; NaN holds none."""
    broken = []
    counts = (findings["num_tensors"], findings["file_bytes"])
    if counts != (PUBLISHED_TENSORS, PUBLISHED_BYTES):
        broken.append(f"{counts[0]} tensors in {counts[1]:,} bytes are not the published file")
    if not findings["refuses_a_renamed_tensor"]:
        broken.append("a checkpoint with a renamed tensor loads, or the error does not name it")
    if findings["peak_ratio"] > MAX_PEAK_RATIO:
        broken.append(f"loading takes {findings['peak_ratio']:.2f}x the float32 weights")
    for tower, most in MAX_INT8_BYTES.items():
        taken = findings["memory"].get(f"{tower} int8", {}).get("loading", 0)
        if taken > most:
            broken.append(f"loading {tower} in int8 takes {taken / 1e9:.2f} GB")
    for tower in ("text", "vision"):
        if not findings[tower]["max_abs_difference"] <= MAX_DIFFERENCE:
            broken.append(f"{tower} rows differ by {findings[tower]['max_abs_difference']:.1e}")
        if not findings[tower]["closest_two_inputs"] > 100 * MAX_DIFFERENCE:
            broken.append(f"{tower} rows of different inputs are too alike to compare")
    return broken


def show(findings: dict[str, Any]) -> None:
    """Print the findings as text."""
    gb = {name: findings[name] / 1e9 for name in ("file_bytes", "peak_bytes", "weight_bytes")}
    print(f"checkpoint  {findings['num_tensors']} tensors, {gb['file_bytes']:.2f} GB F16")
    print(
        f"load        {findings['load_s']:.1f} s, peak {gb['peak_bytes']:.2f} GB = "
        f"{findings['peak_ratio']:.2f}x the {gb['weight_bytes']:.2f} GB of float32 weights"
    )
    for name, sizes in findings["memory"].items():
        print(f"{name:<16}" + ", ".join(f"{k} {v / 1e9:.2f} GB" for k, v in sizes.items()))
    for tower in ("text", "vision"):
        facts = findings[tower]
        print(
            f"{tower:<12}native and reference differ by {facts['max_abs_difference']:.1e} at most, "
            f"cosine {facts['min_cosine']:.12f}; different inputs by "
            f"{facts['closest_two_inputs']:.1e} or more; first forward {facts['native_s']:.1f} s "
            f"against {facts['reference_s']:.1f} s"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, or one step of it in a process of its own."""
    parser = report.command(__doc__)
    parser.add_argument("--keep", type=Path, help="write the checkpoint there and leave it")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.step:
        name, folder, *rest = options.step
        steps: dict[str, Callable[..., dict[str, float]]]
        steps = {"load": load, "memory": memory, "embed": embed}
        print(json.dumps(steps[name](Path(folder), *rest)))
        return 0
    with tempfile.TemporaryDirectory(prefix="full-size-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        findings = measure(folder)
    report.write(options, findings, show)
    broken = broken_bounds(findings)
    for sentence in broken:
        print(f"BROKEN: {sentence}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
