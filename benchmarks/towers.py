"""How fast are the towers, against third-party ones and against the device's own limit?

Loads a checkpoint twice, as the product runs it and as `implementation="reference"` (transformers
and timm, texts in sorted batches of 32, padded, as people run them), and times both in turns on
the same work. Each figure comes with its ratio to the reference, its share of the rate that the
device reaches on one large matrix product, and the agreement of its rows with the reference in
float32.

    python -m benchmarks.towers --device cpu|cuda --size full|demo [--json]

`--size full` writes a random checkpoint of the published size (1.7 GB) to a temporary folder.
Needs the extra `reference`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.harness import machine, report, workloads
from benchmarks.harness.random_checkpoint import checkpoint
from deployments.model import ClipModel
from deployments.model.output import Rows, finish
from deployments.model.tokenizer import TokenIds

EQUAL_LENGTHS = (32, 128, 512, 8192)
JPEG_SIZES = ((640, 480), (1280, 960), (4000, 3000))
QUERY_TOKENS = 16
QUERY_ROUNDS = 9
REFERENCE_BATCH = 32
Run = Callable[[ClipModel], Rows]


@dataclass(frozen=True)
class Work:
    """One thing to measure: how either implementation does it, and how much it is."""

    name: str
    unit: str
    amount: float
    flops: float
    native: Run
    reference: Run
    rounds: int


@dataclass(frozen=True)
class Result:
    """What was measured; rates in units per second, times in milliseconds."""

    name: str
    unit: str
    native_ms: float
    reference_ms: float
    native_rate: float
    reference_rate: float
    ratio: float
    ceiling_share: float
    min_cosine: float
    max_difference: float


def works(model: ClipModel, amounts: workloads.Sizes) -> Iterator[Work]:
    """Yield everything to measure."""
    yield from _text_works(model, amounts)
    yield from _image_works(model, amounts)


def _text_works(model: ClipModel, amounts: workloads.Sizes) -> Iterator[Work]:
    arch = model.architecture.text
    batches = {
        f"text, {length} tokens each": workloads.equal_texts(
            arch, length, max(1, amounts.equal_tokens // length)
        )
        for length in EQUAL_LENGTHS
        if length <= amounts.equal_tokens
    }
    mixed = workloads.mixed_texts(arch, amounts.mix_texts, amounts.mix_longest)
    for name, texts in (batches | {f"text, {len(mixed)} of mixed length": mixed}).items():
        tokens = sum(len(ids) for ids in texts)
        flops = workloads.text_flops(arch, texts)
        native, reference = _packed(texts), _padded(texts)
        yield Work(name, "tokens", tokens, flops, native, reference, amounts.rounds)
    query = workloads.equal_texts(arch, QUERY_TOKENS, 1)
    run = _packed(query)
    flops = workloads.text_flops(arch, query)
    yield Work(f"one query of {QUERY_TOKENS} tokens", "queries", 1, flops, run, run, QUERY_ROUNDS)


def _image_works(model: ClipModel, amounts: workloads.Sizes) -> Iterator[Work]:
    arch = model.architecture.vision
    for count in amounts.image_batches:
        run = _pixels(count, model)
        flops = workloads.vision_flops(arch, count)
        yield Work(f"pixels, batch {count}", "images", count, flops, run, run, amounts.rounds)
    for width, height in JPEG_SIZES if amounts.jpegs else ():
        images = workloads.jpegs(width, height, amounts.jpegs)
        run = _jpegs(images)
        name = f"JPEG {width}x{height}, {len(images[0]) // 1000} KB"
        flops = workloads.vision_flops(arch, len(images))
        yield Work(name, "images", len(images), flops, run, run, min(2, amounts.rounds))


def _packed(texts: list[TokenIds]) -> Run:
    return lambda model: model.embed_tokens(texts)


def _padded(texts: list[TokenIds]) -> Run:
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))

    def run(model: ClipModel) -> Rows:
        rows = np.empty((len(texts), model.width), dtype=np.float32)
        for start in range(0, len(order), REFERENCE_BATCH):
            batch = order[start : start + REFERENCE_BATCH]
            rows[batch] = model.embed_tokens([texts[index] for index in batch])
        return rows

    return run


def _pixels(count: int, model: ClipModel) -> Run:
    pixels = workloads.pixels(model.architecture.vision, count)
    return lambda model: model.embed_pixels(pixels)


def _jpegs(images: list[bytes]) -> Run:
    return lambda model: model.encode_image(images, normalized=False, batch_size=32)


def measure(
    work: Work, native: ClipModel, reference: ClipModel, oracle: ClipModel, ceiling: float
) -> Result:
    """Time both implementations in turns."""
    device = torch.device(native.choices["device"])
    rows = finish(work.native(native))
    work.reference(reference)
    times: list[tuple[float, float]] = [
        (
            machine.timed(lambda: work.native(native), device),
            machine.timed(lambda: work.reference(reference), device),
        )
        for _ in range(work.rounds)
    ]
    native_s, reference_s = (median(column) for column in zip(*times, strict=True))
    exact = finish(work.reference(oracle))
    return Result(
        name=work.name,
        unit=work.unit,
        native_ms=native_s * 1e3,
        reference_ms=reference_s * 1e3,
        native_rate=work.amount / native_s,
        reference_rate=work.amount / reference_s,
        ratio=reference_s / native_s,
        ceiling_share=work.flops / native_s / ceiling,
        min_cosine=float((rows * exact).sum(axis=1).min()),
        max_difference=float(np.abs(rows - exact).max()),
    )


def run(source: str, device: str, size: str, dtype: str) -> dict[str, Any]:
    """Measure everything."""
    amounts = workloads.sizes(device, size)
    start_s = time.perf_counter()
    native = ClipModel.load(source, device=device, dtype=dtype)
    load_s = time.perf_counter() - start_s
    warm_up = native.warm_up(*workloads.warm_budget(native.architecture, amounts))
    reference = _reference(source, device, native.choices["dtype"])
    exact = native.choices["dtype"] == "float32"
    oracle = reference if exact else _reference(source, device, "float32")
    where = torch.device(native.choices["device"])
    ceiling = machine.ceiling_flops(where, getattr(torch, native.choices["dtype"]))
    results = []
    for work in works(native, amounts):
        report.progress(work.name)
        results.append(asdict(measure(work, native, reference, oracle, ceiling)))
    return {
        "choices": native.choices,
        "size": size,
        "load_s": load_s,
        "warm_up": asdict(warm_up),
        "ceiling_tflops": ceiling / 1e12,
        "work": results,
    }


def _reference(source: str, device: str, dtype: str) -> ClipModel:
    return ClipModel.load(
        source, device=device, dtype=dtype, implementation="reference", image_decode="exact"
    )


def show(results: dict[str, Any]) -> None:
    """Print how the towers run, and a line for each work."""
    work = results["work"]
    report.show_values({name: value for name, value in results.items() if value is not work})
    for result in (Result(**values) for values in work):
        print(
            f"{result.name:32s} {result.native_rate:12,.1f} {result.unit}/s "
            f"{result.native_ms:10.2f} ms  {result.ratio:6.2f}x reference  "
            f"{result.ceiling_share:6.1%} of ceiling  cosine {result.min_cosine:.7f}  "
            f"difference {result.max_difference:.1e}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = report.command(__doc__)
    report.add_model(parser)
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args(arguments)
    with checkpoint(options.size) as source:
        results = run(source, options.device, options.size, options.dtype)
    report.write(options, results, show)


if __name__ == "__main__":
    main()
