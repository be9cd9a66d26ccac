"""The golden self-check: pinned inputs of a tower, and the rows that it has to give for them.

A replica whose kernels, precision or memory are wrong answers with vectors that look like any
others; only known ones tell. Pure: numpy, and no clock.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deployments.model.output import Rows
from deployments.model.pictures.image import Pixels
from deployments.model.tokenizer import TokenIds

THRESHOLD = 0.999

# Scripts that take different paths through the tokenizer, a literal special token, and nothing.
SENTENCES = (
    "A beautiful sunset over the beach",
    "海滩上美丽的日落",
    "ビーチに沈む美しい夕日",
    "غروب جميل على الشاطئ",
    "समुद्र तट पर एक सुंदर सूर्यास्त",
    "Ένα όμορφο ηλιοβασίλεμα & <pad> ¿1,234.5?",
    "",
)
PASSAGE = "The tide comes in twice a day, und jedes Mal wäscht es den Sand glatt. 潮が満ちる。 "

Input = NDArray[Any]
"""Token ids int32 [n], or pixels uint8 [size, size, 3]."""
Embed = Callable[[Sequence[Input]], Rows]


@dataclass(frozen=True)
class Canary:
    """Inputs of one tower, in the batches that they run in, and their rows.

    Attributes:
        batches: the inputs of each batch.
        expected: float32 [inputs, width], of any length.
    """

    batches: tuple[tuple[Input, ...], ...]
    expected: Rows

    def cosine(self, embed: Embed) -> float:
        """Run the inputs and return the lowest cosine with an expected row; NaN if one is NaN."""
        return lowest_cosine(run(embed, self.batches), self.expected)


def run(embed: Embed, batches: Sequence[Sequence[Input]]) -> Rows:
    """Embed each batch and return all rows in order."""
    return np.concatenate([embed(batch) for batch in batches])


def lowest_cosine(rows: Rows, expected: Rows) -> float:
    """Return the lowest cosine of two matrices row by row; NaN if a row is NaN or zero."""
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(expected, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(((rows * expected).sum(axis=1) / lengths).min())


def passes(cosine: float) -> bool:
    """Tell whether a cosine is high enough; NaN is not."""
    return cosine >= THRESHOLD


def texts(
    encode: Callable[[Sequence[str]], list[TokenIds]], long_tokens: int
) -> tuple[tuple[TokenIds, ...], ...]:
    """Return the text tower's batches: short texts in several scripts, then a long one alone.

    Args:
        encode: the tokenizer; it cuts what is longer than `long_tokens`.
        long_tokens: length of the long text.
    """
    *short, long = encode([*SENTENCES, PASSAGE * (1 + long_tokens // 8)])
    return (tuple(short), (long,))


def pictures(size: int) -> tuple[tuple[Pixels, ...], ...]:
    """Return the vision tower's batch: a smooth picture and one with hard edges and noise."""
    ramp = np.linspace(0, 255, size, dtype=np.float32)
    smooth = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], 255 - ramp[None, :]), -1)
    steps = np.arange(size) // max(1, size // 8)
    squares = (steps[:, None] + steps[None, :]) % 2 * 190
    noise = np.random.default_rng(7).integers(0, 64, (size, size, 3))
    edges = squares[:, :, None] + noise
    return ((smooth.astype(np.uint8), edges.astype(np.uint8)),)


def golden(folder: Path, tower: Literal["text", "vision"]) -> Canary:
    """Read the golden file of the shipped checkpoint: vectors that third-party towers computed."""
    with np.load(folder / "golden.npz") as arrays:
        if tower == "vision":
            return Canary((tuple(arrays["crops"]),), arrays["image_unit"])
        expected = arrays["text_unit"]
    facts = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    ids = tuple(np.array(text["ids"], dtype=np.int32) for text in facts["texts"])
    return Canary((ids,), expected)
