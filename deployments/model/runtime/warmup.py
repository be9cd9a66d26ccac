"""Everything slow or too large shows here, before a server says that it is ready.

Compiles, loads kernels for the sizes of batches to come, captures graphs and runs full batches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deployments.model.architecture import TextArchitecture, VisionArchitecture
from deployments.model.pictures.image import Pixels
from deployments.model.runtime import memory
from deployments.model.runtime.runners import Runner
from deployments.model.tokenizer import TokenIds


@dataclass(frozen=True)
class WarmUp:
    """What a warm-up took.

    Attributes:
        seconds: the whole of it.
        text_peak_bytes: device memory in use at the full text budget; 0 on a CPU.
        vision_peak_bytes: the same for pictures.
    """

    seconds: float
    text_peak_bytes: int = 0
    vision_peak_bytes: int = 0


def warm_text(
    runner: Runner[Sequence[TokenIds]],
    arch: TextArchitecture,
    device: torch.device,
    max_tokens: int,
    max_sequences: int,
) -> int:
    """Prepare for batches up to the budget; returns the peak of device memory in bytes.

    Raises:
        OptionError: the budget does not fit on the device.
    """

    def run(tokens: int) -> None:
        for texts in text_batches(tokens, max_sequences, arch.max_tokens):
            runner.launch(texts).rows()

    # Three numbers that differ, or the compiler would take them for one.
    runner.launch(_texts([48, 17, 5])).rows()
    runner.capture(max_tokens)
    peak_bytes = memory.require(run, max_tokens, 1024, "max_batch_tokens", device)
    if device.type == "cuda":
        for tokens in _sizes(max_tokens):
            run(tokens)
    return peak_bytes


def warm_vision(
    runner: Runner[Pixels | Tensor], arch: VisionArchitecture, device: torch.device, max_images: int
) -> int:
    """Prepare for batches up to the budget; returns the peak of device memory in bytes.

    Raises:
        OptionError: the budget does not fit on the device.
    """

    def run(images: int) -> None:
        size = arch.image_size
        runner.launch(np.zeros((images, size, size, 3), dtype=np.uint8)).rows()

    run(1)
    run(min(2, max_images))  # one picture is a compilation of its own
    runner.capture(max_images)
    peak_bytes = memory.require(run, max_images, 1, "max_batch_images", device)
    if device.type == "cuda":
        for images in _sizes(max_images):
            run(images)
    return peak_bytes


def text_batches(tokens: int, sequences: int, longest: int) -> Iterator[list[TokenIds]]:
    """Yield the extremes of a budget: the longest texts, and the most texts."""
    long, rest = divmod(tokens, longest)
    yield _texts([longest] * long + [rest] * (rest > 0))
    count = max(1, min(sequences, tokens // 2))
    yield _texts([tokens // count] * count)


def _texts(lengths: list[int]) -> list[TokenIds]:
    return [np.zeros(length, dtype=np.int32) for length in lengths]


def _sizes(largest: int) -> Iterator[int]:
    """Yield a ladder of sizes: libraries choose and load other kernels as a batch grows."""
    size = largest
    while size > 1:
        yield size
        size = size * 2 // 3
