"""How well a precision finds the gallery's images by their names, beside float32."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deployments.model import ClipModel
from deployments.model.output import Rows
from serve_app.gallery import LANGUAGES, Query, gallery_images, phrases

NEAREST = 10
Order = NDArray[np.intp]
"""Images by likeness to each text, the most like first: [texts, images]."""


@dataclass(frozen=True)
class Found:
    """One set of texts: shares in percent, of float32 and of the other precision.

    Attributes:
        texts: whose they are.
        count: how many.
        recall_1: texts whose first image is an expected one; float32's, then the other's.
        recall_5: texts with an expected image among the first five.
        overlap: of float32's ten nearest images, how many are among the other's, on average.
    """

    texts: str
    count: int
    recall_1: tuple[float, float]
    recall_5: tuple[float, float]
    overlap: float


@dataclass(frozen=True)
class Closeness:
    """Cosines of the same inputs in both precisions."""

    inputs: str
    count: int
    mean: float
    least: float


@dataclass(frozen=True)
class Quality:
    """One precision against float32 on the shipped gallery."""

    dtype: str
    closeness: tuple[Closeness, ...]
    found: tuple[Found, ...]


def quality(exact: ClipModel, other: ClipModel) -> Quality:
    """Embed the gallery, its names in every language and its phrases with both, and compare."""
    images = gallery_images()
    files = [image.file for image in images]
    models = exact, other
    pictures = [model.encode_image([x.path.read_bytes() for x in images]) for model in models]
    cosines, found = [], []
    for title, queries in _texts():
        rows = [model.encode_text([query.text for query in queries]) for model in models]
        cosines.append((rows[0] * rows[1]).sum(axis=1))
        orders = [np.argsort(-x @ y.T, axis=1) for x, y in zip(rows, pictures, strict=True)]
        answers = [[files.index(file) for file in query.expected] for query in queries]
        one, five = (
            (_recall(orders[0], answers, k), _recall(orders[1], answers, k)) for k in (1, 5)
        )
        found.append(Found(title, len(queries), one, five, _overlap(orders[0], orders[1])))
    closeness = (
        _closeness("texts", np.concatenate(cosines)),
        _closeness("images", (pictures[0] * pictures[1]).sum(axis=1)),
    )
    return Quality(other.choices["dtype"], closeness, tuple(found))


def _texts() -> Iterator[tuple[str, list[Query]]]:
    """Yield sets of texts with their title: the names by language, and the phrases."""
    for code, language in LANGUAGES.items():
        names = [Query(x.names[code], code, (x.file,)) for x in gallery_images()]
        yield f"names, {language}", names
    yield "phrases", phrases()


def _recall(order: Order, answers: list[list[int]], k: int) -> float:
    hits = [bool(set(row[:k]) & set(right)) for row, right in zip(order, answers, strict=True)]
    return 100 * float(np.mean(hits))


def _overlap(exact: Order, other: Order) -> float:
    pairs = zip(exact[:, :NEAREST], other[:, :NEAREST], strict=True)
    return 100 * float(np.mean([len(set(x) & set(y)) / NEAREST for x, y in pairs]))


def _closeness(inputs: str, cosines: Rows) -> Closeness:
    return Closeness(inputs, len(cosines), float(cosines.mean()), float(cosines.min()))


def show(qualities: Sequence[Quality]) -> None:
    """Print a line for each set of texts."""
    for quality in qualities:
        for x in quality.closeness:
            print(
                f"{quality.dtype:9s} {x.count} {x.inputs}: cosine with float32 {x.mean:.5f} on "
                f"average, {x.least:.5f} at worst"
            )
        for found in quality.found:
            (one, five) = (
                f"{name} {other:.1f}% (float32 {exact:.1f}%)"
                for name, (exact, other) in (("first", found.recall_1), ("five", found.recall_5))
            )
            title = f"{found.count} {found.texts}"
            print(f"{quality.dtype:9s} {title:24s} {one}, {five}, top ten {found.overlap:.1f}%")
