"""The work that the tower benchmarks measure: token ids and images, the same in every run."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deployments.model.architecture import Architecture, TextArchitecture, VisionArchitecture
from deployments.model.pictures.image import Pixels
from deployments.model.tokenizer import TokenIds

# Log-normal lengths with a median of 67 tokens and a mean of about 123.
MIX_MEDIAN_TOKENS = 67
MIX_SIGMA = 1.1
MIX_LONGEST = 3448


@dataclass(frozen=True)
class Sizes:
    """How much of each kind one machine can run in minutes.

    Attributes:
        mix_texts: texts of the log-normal mix.
        mix_longest: its longest text in tokens.
        equal_tokens: tokens of a batch of equal texts.
        rounds: timed runs of each implementation.
        image_batches: sizes of the batches of pixels.
        jpegs: images per JPEG measurement; 0 where the tower alone takes seconds an image.
    """

    mix_texts: int
    mix_longest: int
    equal_tokens: int
    rounds: int
    image_batches: tuple[int, ...]
    jpegs: int


def sizes(device: str, size: str) -> Sizes:
    """Return the amounts for a device and a model size."""
    if device == "cuda":
        return Sizes(512, MIX_LONGEST, 32768, 5, (1, 8, 32), 256)
    if size == "demo":
        return Sizes(128, 1024, 4096, 5, (1, 8, 32), 16)
    return Sizes(8, 192, 128, 2, (1,), 0)


def mixed_texts(arch: TextArchitecture, count: int, longest: int) -> list[TokenIds]:
    """Return texts with log-normal lengths; the last one is of the longest length."""
    random = np.random.default_rng(5)
    lengths = np.exp(random.normal(np.log(MIX_MEDIAN_TOKENS), MIX_SIGMA, count)).astype(int)
    lengths[-1] = longest
    return [_text(arch, random, int(length)) for length in lengths.clip(4, longest)]


def equal_texts(arch: TextArchitecture, length: int, count: int) -> list[TokenIds]:
    """Return texts of one length."""
    random = np.random.default_rng(6)
    return [_text(arch, random, length) for _ in range(count)]


def pixels(arch: VisionArchitecture, count: int) -> Pixels:
    """Return noise as images: uint8 [count, size, size, 3]."""
    shape = (count, arch.image_size, arch.image_size, 3)
    return np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8)


def jpegs(
    width: int, height: int, count: int, distinct: int = 8, progressive: bool = False
) -> list[bytes]:
    """Return encoded images with detail at every scale, about 1.3 bits a pixel as photographs."""
    encoded = [_jpeg(width, height, seed, progressive) for seed in range(min(distinct, count))]
    return [encoded[index % len(encoded)] for index in range(count)]


def commented(jpeg: bytes, number: int, first: bool = False) -> bytes:
    """Return a JPEG with a number as its comment, behind its first segment (JFIF) or before it."""
    comment = b"\xff\xfe\x00\x0a" + number.to_bytes(8, "big")
    place = 2 if first else 4 + int.from_bytes(jpeg[4:6], "big")
    return jpeg[:place] + comment + jpeg[place:]


def kinds_of_jpegs(count: int) -> dict[str, list[bytes]]:
    """Return JPEGs that a GPU's JPEG unit may take, or leave to its other cores."""
    small = jpegs(1280, 960, count)
    return {
        "4000x3000": jpegs(4000, 3000, count),
        "1280x960": small,
        "with a comment": [commented(jpeg, 1) for jpeg in small],
        "with a comment first": [commented(jpeg, 1, first=True) for jpeg in small],
        "progressive": jpegs(1280, 960, count, progressive=True),
    }


def text_flops(arch: TextArchitecture, texts: Sequence[TokenIds]) -> float:
    """Return the operations of the layers on texts without padding: 2 per multiply and add."""
    hidden, layers = arch.hidden_size, arch.num_hidden_layers
    linear = 8 * hidden**2 + 4 * hidden * arch.intermediate_size
    return float(sum(layers * len(ids) * (linear + 4 * hidden * len(ids)) for ids in texts))


def vision_flops(arch: VisionArchitecture, count: int) -> float:
    """Return the operations of the layers on images."""
    width, tokens = arch.width, arch.num_tokens
    linear = 8 * width**2 + 6 * width * arch.mlp_width
    return float(count * arch.layers * tokens * (linear + 4 * width * tokens))


def warm_budget(arch: Architecture, amounts: Sizes) -> tuple[int, int, int]:
    """Return the budgets in tokens, texts and images that cover every measurement."""
    longest = sum(
        len(ids) for ids in mixed_texts(arch.text, amounts.mix_texts, amounts.mix_longest)
    )
    return (
        max(longest, amounts.equal_tokens),
        amounts.equal_tokens // 32,
        max(amounts.image_batches),
    )


def _text(arch: TextArchitecture, random: np.random.Generator, length: int) -> TokenIds:
    ids: NDArray[np.int32] = random.integers(4, arch.vocab_size - 1, length, dtype=np.int32)
    ids[0], ids[-1] = 0, 2
    return ids


def _jpeg(width: int, height: int, seed: int, progressive: bool) -> bytes:
    """Add noise of halving scales, each half as strong, and encode it."""
    random = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), dtype=np.float32)
    for power in range(1, 9):
        cells = (max(1, width >> (8 - power)), max(1, height >> (8 - power)))
        noise = random.integers(0, 256, (cells[1], cells[0], 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        total += (np.asarray(layer, dtype=np.float32) - 128) * 0.55**power
    file = BytesIO()
    Image.fromarray((total * 1.2 + 128).clip(0, 255).astype(np.uint8)).save(
        file, "JPEG", quality=80, progressive=progressive
    )
    return file.getvalue()
