"""Zero-shot classification: an item's similarity to each label, and scores that add up to 1."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from deployments.errors import RequestError
from deployments.messages import Classification, Embeddings, TextItem
from deployments.model.output import Rows

LabelsInput = Sequence[str] | Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Labels:
    """The labels of a request, in order.

    Attributes:
        texts: of the labels.
        groups: the name of each label's group, empty where there are none.
    """

    texts: tuple[str, ...]
    groups: tuple[str, ...] = ()

    @classmethod
    def read(cls, value: object, most: int) -> "Labels":
        """Read a list of texts, or lists of texts by the names of their groups.

        Raises:
            RequestError: no such thing, fewer than two in a list, more than `most` in all, or one
                that occurs twice in a list.
        """
        if isinstance(value, Mapping):
            parts = {str(name): cls._texts(f"labels.{name}", x) for name, x in value.items()}
            texts = tuple(text for part in parts.values() for text in part)
            groups = tuple(name for name, part in parts.items() for _ in part)
        else:
            texts, groups = cls._texts("labels", value), ()
        if len(texts) > most:
            raise RequestError(f"{len(texts):,} labels; the limit is {most:,} in one request")
        if not texts:
            raise RequestError("labels has no group; send a list of texts, or lists by name")
        return cls(texts, groups)

    @staticmethod
    def _texts(name: str, value: object) -> tuple[str, ...]:
        if not _is_list(value):
            raise RequestError(
                f"{name} is no list of texts; send two or more, or lists of them by name"
            )
        for index, text in enumerate(value):
            if not isinstance(text, str) or not text.strip():
                raise RequestError(
                    f"{name}[{index}] is {text!r:.40}; send a text that is not empty"
                )
        if len(value) < 2 or len(set(value)) < len(value):
            raise RequestError(
                f"{name} has {len(value)} labels, {len(set(value))} of them different; send two or "
                "more, all different"
            )
        return tuple(value)

    def parts(self) -> list[slice]:
        """Return the places of the labels that compete: those of a group, or all."""
        if not self.groups:
            return [slice(0, len(self.texts))]
        starts = [i for i, x in enumerate(self.groups) if i == 0 or x != self.groups[i - 1]]
        return [slice(*pair) for pair in zip(starts, [*starts[1:], len(self.texts)], strict=True)]


def with_labels(items: object, labels: Labels, most: int) -> Sequence[object]:
    """Return the items and, behind them, the labels as items; what is no list stays as it is.

    Raises:
        RequestError: more than `most` items.
    """
    if not _is_list(items) or not items:
        return items  # type: ignore[return-value]  # the Router says what is wrong with it
    if len(items) > most:
        raise RequestError(f"{len(items):,} items; the limit is {most:,} with labels")
    return [*items, *map(TextItem, labels.texts)]


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def classified(answer: Embeddings, labels: Labels, scale: float) -> Classification:
    """Return the labels' similarities and scores for each item.

    A score is softmax(scale * cosine) over the labels that compete: with scale 1 as the hosted API
    has it, with the model's trained temperature the probabilities that it was trained to give
    (CLIP, Radford et al. 2021, 2.3).

    Args:
        answer: the items' rows, then the labels', of length 1.
        labels: as they were embedded.
        scale: of the similarities, over 0.
    """
    count = len(answer.embeddings) - len(labels.texts)
    items, rows = answer.embeddings[:count], answer.embeddings[count:]
    similarities = items @ rows.T
    scores = np.concatenate(
        [_softmax(scale * similarities[:, part]) for part in labels.parts()], axis=1
    )
    return Classification(
        labels.texts,
        labels.groups,
        similarities,
        scores,
        answer.usage,
        answer.failures,
        answer.timings,
        answer.fingerprint,
        answer.replicas,
    )


def _softmax(logits: Rows) -> Rows:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores: Rows = exponentials / exponentials.sum(axis=1, keepdims=True)
    return scores
