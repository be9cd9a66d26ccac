"""What do lower precision and faster image decoding buy, and what do they cost?

Runs one checkpoint in float32 with exact decoding, and beside it in each other precision and with
each other way of decoding that runs here, in turns on the same work: the gain in time and the
smallest cosine to the exact rows. With the shipped checkpoint it also says how many of the
gallery's images each precision finds by their names in 16 languages and by phrases.

    python -m benchmarks.precision --device cpu|cuda --size full|demo [--json]

`--size full` writes a random checkpoint of the published size (1.7 GB) to a temporary folder;
random weights say what time is gained, not how close rows of trained weights stay.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import TypeVar

import torch

from benchmarks.harness import report, workloads
from benchmarks.harness.machine import timed
from benchmarks.harness.quality import Quality, quality
from benchmarks.harness.quality import show as show_quality
from benchmarks.harness.random_checkpoint import checkpoint
from deployments.model import ClipModel
from deployments.model.errors import OptionError
from deployments.model.output import Rows, finish
from deployments.model.pictures.decode import Decoded, Decoder, resolve
from deployments.model.towers.linear import int8_fault

TEXTS = ((16, 1), (32, 32), (512, 4))  # tokens of a text, texts of a batch
JPEG_SIZES = ((640, 480), (1280, 960), (4000, 3000))
NUM_JPEGS = 8
ROUNDS = 5
T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """One choice against the exact one: times of one run, and the smallest cosine of a row."""

    work: str
    choice: str
    exact_ms: float
    ms: float
    gain: float
    min_cosine: float


def precisions(source: str, device: torch.device) -> Iterator[Result]:
    """Compare other precisions with float32; times are of the tower alone."""
    exact = _load(source, device, "float32")
    arch = exact.architecture
    for dtype in other_dtypes(device):
        other = _load(source, device, dtype)
        for length, count in TEXTS:
            texts = workloads.equal_texts(arch.text, length, count)
            runs = partial(exact.embed_tokens, texts), partial(other.embed_tokens, texts)
            yield compare(f"text, {count} x {length} tokens", dtype, runs, finish, device)
        for count in (1, 4):
            pixels = workloads.pixels(arch.vision, count)
            images = partial(exact.embed_pixels, pixels), partial(other.embed_pixels, pixels)
            yield compare(f"pixels, batch {count}", dtype, images, finish, device)


def qualities(source: str, device: torch.device) -> Iterator[Quality]:
    """Compare what other precisions find with what float32 finds."""
    exact = _load(source, device, "float32")
    for dtype in other_dtypes(device):
        yield quality(exact, _load(source, device, dtype))


def other_dtypes(device: torch.device) -> list[str]:
    """Return the precisions that run here beside float32."""
    halves = ["bfloat16", "float16"] if device.type == "cuda" else ["bfloat16"]
    return [*halves, *([] if int8_fault(device) else ["int8"])]


def decodings(source: str, device: torch.device) -> Iterator[Result]:
    """Compare other ways of decoding with the exact one; times are of decoding alone."""
    model = _load(source, device, "float32")
    size = model.architecture.vision.image_size

    def rows(decoded: Decoded) -> Rows:
        return finish(model.embed_pixels(decoded.pixels))

    for mode in ("draft", "gpu"):
        try:
            decoder = Decoder(size, device, resolve(mode, device))
        except OptionError:  # this device decodes no images
            continue
        for width, height in JPEG_SIZES:
            images = workloads.jpegs(width, height, NUM_JPEGS)
            runs = partial(Decoder(size, device).decode, images), partial(decoder.decode, images)
            yield compare(f"JPEG {width}x{height}, {NUM_JPEGS}", mode, runs, rows, device)


def compare(
    work: str,
    choice: str,
    runs: tuple[Callable[[], T], Callable[[], T]],
    rows: Callable[[T], Rows],
    device: torch.device,
) -> Result:
    """Time the exact run and the other one in turns, and compare what they give."""
    exact, other = (rows(run()) for run in runs)
    times = [[timed(run, device) for run in runs] for _ in range(ROUNDS)]
    exact_s, other_s = (median(column) for column in zip(*times, strict=True))
    cosine = float((exact * other).sum(axis=1).min())
    return Result(work, choice, exact_s * 1e3, other_s * 1e3, exact_s / other_s, cosine)


def _load(source: str, device: torch.device, dtype: str) -> ClipModel:
    return ClipModel.load(source, device=str(device), dtype=dtype, image_decode="exact")


def show(choices: Sequence[Result], found: Sequence[Quality]) -> None:
    """Print a line for each choice, and for each set of texts."""
    for x in choices:
        print(
            f"{x.work:24s} {x.choice:9s} {x.exact_ms:10.2f} ms exact"
            f" {x.ms:10.2f} ms {x.gain:6.2f}x  cosine {x.min_cosine:.6f}"
        )
    show_quality(found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = report.command(__doc__)
    report.add_model(parser)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    with checkpoint(options.size) as source:
        choices = [*precisions(source, device), *decodings(source, device)]
        # Random weights find nothing.
        found = list(qualities(source, device)) if options.size == "demo" else []
    results = {"choices": [asdict(x) for x in choices], "quality": [asdict(x) for x in found]}
    report.write(options, results, lambda _: show(choices, found))


if __name__ == "__main__":
    main()
