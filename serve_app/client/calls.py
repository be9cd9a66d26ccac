"""What each call asks of a server, over HTTP or by handle, and how its answer is read."""

import io
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Generic, TypeVar

import httpx
import numpy as np
import orjson

from deployments.messages import Classification
from deployments.model.output import Rows
from deployments.routing.classification import LabelsInput
from serve_app.api.rendering import JSON, NPY

A = TypeVar("A", bound=Sized)


@dataclass(frozen=True)
class Call(Generic[A]):
    """One kind of call.

    Attributes:
        path: of its route.
        method: of an application handle.
        fields: what goes with the items; a route and a method have the same names for them.
        accept: the body types that `of_http` reads.
        of_http: reads a good answer over HTTP.
        of_handle: reads a handle's answer.
    """

    path: str
    method: str
    fields: Mapping[str, Any]
    accept: str
    of_http: Callable[[httpx.Response], A]
    of_handle: Callable[[Any], A]


@dataclass(frozen=True)
class Scores:
    """How well labels fit items.

    Attributes:
        labels: in the order of the columns.
        groups: the name of each label's group; empty where there are none.
        similarities: float32 [items, labels], cosines.
        scores: float32 [items, labels]; those of an item add up to 1, within each group.
    """

    labels: tuple[str, ...]
    groups: tuple[str, ...]
    similarities: Rows
    scores: Rows

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.scores)

    def best(self, group: str | None = None) -> list[str]:
        """Return the label with the highest score of each item.

        Args:
            group: of which labels; None for all, or for the first group.

        Raises:
            ValueError: there is no such group.
        """
        if not len(self):
            return []
        groups = self.groups or (None,) * len(self.labels)
        wanted = groups[0] if group is None else group
        places = [place for place, name in enumerate(groups) if name == wanted]
        if not places:
            names = ", ".join(dict.fromkeys(self.groups)) or "no group"
            raise ValueError(f"group is {group!r}; there is {names}")
        return [self.labels[places[x]] for x in self.scores[:, places].argmax(axis=1)]

    @classmethod
    def joined(cls, parts: "Sequence[Scores]") -> "Scores":
        """Put the answers to several requests for the same labels one behind the other."""
        if not parts:
            nothing = np.empty((0, 0), np.float32)
            return cls((), (), nothing, nothing)
        similarities = np.concatenate([part.similarities for part in parts])
        scores = np.concatenate([part.scores for part in parts])
        return cls(parts[0].labels, parts[0].groups, similarities, scores)


def embedding(
    task: str | None, dimensions: int | None, normalized: bool, truncate: bool = False
) -> Call[Rows]:
    """Return the call for rows; answers come as .npy, the smallest and fastest body."""
    fields = {
        "task": task,
        "dimensions": dimensions,
        "normalized": normalized,
        "truncate": truncate,
    }
    accept = f"{NPY}, {JSON};q=0.5"  # errors are JSON
    return Call("/v1/embeddings", "embed", fields, accept, _rows, attrgetter("embeddings"))


def classification(labels: LabelsInput, logit_scale: bool, truncate: bool) -> Call[Scores]:
    """Return the call for the scores of labels."""
    fields = {"labels": labels, "logit_scale": logit_scale, "truncate": truncate}
    return Call("/v1/classify", "classify", fields, JSON, _scores, _scores_of_handle)


def _rows(answer: httpx.Response) -> Rows:
    rows: Rows = np.load(io.BytesIO(answer.content), allow_pickle=False)
    return rows


def _scores(answer: httpx.Response) -> Scores:
    items = [item["predictions"] for item in orjson.loads(answer.content)["data"]]

    def matrix(field: str) -> Rows:
        return np.array([[label[field] for label in item] for item in items], np.float32)

    labels = tuple(label["label"] for label in items[0])
    groups = tuple(label["group"] for label in items[0] if "group" in label)
    return Scores(labels, groups, matrix("similarity"), matrix("score"))


def _scores_of_handle(answer: Classification) -> Scores:
    return Scores(answer.labels, answer.groups, answer.similarities, answer.scores)
