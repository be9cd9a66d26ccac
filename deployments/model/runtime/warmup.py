"""Everything slow or too large shows here, before a server says that it is ready.

Compiles, loads kernels for the sizes of batches to come, captures graphs and runs full batches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from deployments.model.architecture import TextArchitecture, VisionArchitecture
from deployments.model.runtime import memory
from deployments.model.runtime.runners import Images, Runner
from deployments.model.tokenizer import TokenIds
from deployments.model.towers.kernels import milliseconds

MANY_TEXTS = 300
# A batch on a GPU is to take about so long: a query waits for the one that runs. On a small card a
# full budget would take seconds.
BATCH_MS = 100.0
TOKEN_STEP = 256


@dataclass(frozen=True)
class WarmUp:
    """What a warm-up took.

    Attributes:
        seconds: the whole of it.
        text_peak_bytes: device memory in use at the full text budget; 0 on a CPU.
        vision_peak_bytes: the same for images.
        text_tokens: tokens of a batch that takes about `BATCH_MS`, the budget at most.
        vision_images: the same for images.
    """

    seconds: float
    text_peak_bytes: int = 0
    vision_peak_bytes: int = 0
    text_tokens: int = 0
    vision_images: int = 0


def warm_text(
    runner: Runner[Sequence[TokenIds]],
    arch: TextArchitecture,
    device: torch.device,
    max_tokens: int,
    max_sequences: int,
) -> tuple[int, int]:
    """Prepare for batches up to the budget.

    Returns the peak of device memory in bytes, and how many tokens take about `BATCH_MS`.

    Raises:
        OptionError: the budget does not fit on the device.
    """

    def run(tokens: int) -> None:
        for lengths in text_extremes(tokens, max_sequences, arch.max_tokens):
            runner.launch(_texts(lengths)).rows()

    def run_unlike(tokens: int) -> None:
        runner.launch(_texts(unlike(tokens, arch.max_tokens))).rows()

    if device.type == "cuda":
        # A large batch comes first: the compiler tunes its code for the first that it sees. One
        # that finds too little memory is refused below, by the largest that does.
        memory.fits(run_unlike, max_tokens)
    else:
        runner.launch(_texts([48, 17, 5])).rows()
    peak_bytes = memory.require(run, max_tokens, 1024, "max_batch_tokens", device)
    if device.type == "cuda":
        for tokens in _sizes(max_tokens):
            run(tokens)
    runner.capture(max_tokens)
    if device.type != "cuda":
        return peak_bytes, max_tokens
    _, many, *_ = text_extremes(max_tokens, max_sequences, arch.max_tokens)
    full_ms = milliseconds(lambda: runner.launch(_texts(many)))
    return peak_bytes, timely(max_tokens, full_ms, TOKEN_STEP)


def warm_vision(
    runner: Runner[Images],
    arch: VisionArchitecture,
    device: torch.device,
    max_images: int,
) -> tuple[int, int]:
    """Prepare for batches up to the budget.

    Returns the peak of device memory in bytes, and how many images take about `BATCH_MS`.

    Raises:
        OptionError: the budget does not fit on the device.
    """

    def run(images: int) -> None:
        size = arch.image_size
        runner.launch(np.zeros((images, size, size, 3), dtype=np.uint8)).rows()

    if device.type != "cuda":
        run(1)
        return 0, max_images
    peak_bytes = memory.require(run, max_images, 1, "max_batch_images", device)
    # Every number of images: one is a compilation of its own, and cuDNN plans for each, 70 ms.
    for images in range(max_images, 0, -1):
        run(images)
    runner.capture(max_images)
    full = np.zeros((max_images, arch.image_size, arch.image_size, 3), dtype=np.uint8)
    return peak_bytes, timely(max_images, milliseconds(lambda: runner.launch(full)), 1)


def timely(budget: int, full_ms: float, step: int) -> int:
    """Return how much of a budget that takes `full_ms` takes about `BATCH_MS`, in whole steps."""
    if full_ms <= BATCH_MS:
        return budget
    return min(budget, max(step, int(budget * BATCH_MS / full_ms) // step * step))


def text_extremes(tokens: int, sequences: int, longest: int) -> Iterator[list[int]]:
    """Yield lengths of texts at the ends of a budget: the longest, the most, and both in one.

    The last is a kernel for long texts with more of them than 256, for which FlashAttention-4
    compiles anew.
    """
    long, rest = divmod(tokens, longest)
    yield [longest] * long + [rest] * (rest > 0)
    count = max(1, min(sequences, tokens // 2))
    yield [tokens // count] * count
    short = min(sequences - 1, MANY_TEXTS, tokens // 4)
    if short > 0:
        yield [min(longest, tokens - 2 * short)] + [2] * short


def unlike(tokens: int, longest: int) -> list[int]:
    """Return lengths of texts of which no two, nor their number or sum, are equal.

    The compiler would take equal numbers for one, and compile again for a batch where they differ.
    """
    first, second = min(longest, tokens // 2), min(longest - 1, tokens // 3)
    return [first, second, min(longest - 2, tokens - first - second - 5)]


def _texts(lengths: list[int]) -> list[TokenIds]:
    return [np.zeros(length, dtype=np.int32) for length in lengths]


def _sizes(largest: int) -> Iterator[int]:
    """Yield a ladder of sizes: libraries choose and load other kernels as a batch grows."""
    size = largest
    while size > 1:
        yield size
        size = size * 2 // 3
