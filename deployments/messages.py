"""What crosses a handle, as plain dataclasses: items, chunks, rows and the answer to a request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np

from deployments.errors import RequestError, ServiceError
from deployments.model.errors import EmbeddingError
from deployments.model.output import Row, Rows
from deployments.model.tokenizer import TokenIds

Lane = Literal["interactive", "bulk"]


@dataclass(frozen=True, slots=True)
class TextItem:
    """One text to embed."""

    text: str


@dataclass(frozen=True, slots=True)
class ImageItem:
    """One image: encoded bytes, or a URL, data URI, base64 or s3:// string."""

    source: bytes | str


@dataclass(frozen=True, slots=True)
class TokenItem:
    """One text as token ids of the served model's own vocabulary, with or without `<s>`, `</s>`."""

    token_ids: tuple[int, ...]


Item = TextItem | ImageItem | TokenItem


def parse_item(index: int, value: object) -> Item:
    """Turn `"text"`, `{"text": ...}` or `{"image": ...}` into an item.

    Raises:
        RequestError: any other form.
    """
    if isinstance(value, (TextItem, ImageItem, TokenItem)):
        return value
    if isinstance(value, str):
        return TextItem(value)
    if isinstance(value, Mapping) and len(value) == 1:
        ((key, content),) = value.items()
        if key == "text" and isinstance(content, str):
            return TextItem(content)
        if key == "image" and isinstance(content, (str, bytes)):
            return ImageItem(content)
    raise RequestError(
        f"item {index} is neither a string nor {{'text': string}} nor {{'image': string or bytes}}"
    )


@dataclass(frozen=True, slots=True)
class Terms:
    """How a chunk is to be treated: its lane, and the seconds after which nobody waits for it."""

    lane: Lane
    timeout_s: float


@dataclass(frozen=True, slots=True)
class TextChunk:
    """Texts of bounded cost on their way to the text tower.

    Attributes:
        token_ids: int32, all texts one after the other.
        lengths: int32 [n], tokens of each.
        terms: how the chunk is to be treated.
    """

    token_ids: TokenIds
    lengths: TokenIds
    terms: Terms

    @classmethod
    def of(cls, texts: Sequence[TokenIds], terms: Terms) -> "TextChunk":
        """Join texts into a chunk."""
        lengths = np.array([len(ids) for ids in texts], dtype=np.int32)
        return cls(np.concatenate(texts), lengths, terms)

    def texts(self) -> list[TokenIds]:
        """Return the token ids of each text."""
        if len(self.lengths) == 1:
            return [self.token_ids]
        # np.split does the same and takes four times as long.
        ends = np.cumsum(self.lengths).tolist()
        return [self.token_ids[start:end] for start, end in pairwise((0, *ends))]


@dataclass(frozen=True, slots=True)
class ImageChunk:
    """Encoded images of bounded cost on their way to the vision tower."""

    images: tuple[bytes, ...]
    terms: Terms


@dataclass(frozen=True, slots=True)
class TowerRows:
    """A tower's answer to a chunk.

    Attributes:
        rows: float32 [n, width], un-normalised, in the chunk's order; a failed row is zero.
        failures: what went wrong with which item.
        queue_ms: how long the chunk waited for the device.
        device_ms: how long the device worked on its batches.
        replica: of the tower that made them, as `text:ID`; empty where none did.
        fingerprint: of that replica: what the rows depend on besides the items.
    """

    rows: Rows
    failures: Mapping[int, EmbeddingError] = field(default_factory=dict)
    queue_ms: float = 0.0
    device_ms: float = 0.0
    replica: str = ""
    fingerprint: str = ""

    @classmethod
    def of(
        cls,
        results: Sequence[Row | Exception],
        width: int,
        queue_ms: float = 0.0,
        device_ms: float = 0.0,
        replica: str = "",
        fingerprint: str = "",
    ) -> "TowerRows":
        """Collect one result per item; an error that is not ours becomes a ServiceError."""
        rows = np.zeros((len(results), width), dtype=np.float32)
        failures: dict[int, EmbeddingError] = {}
        for index, result in enumerate(results):
            if isinstance(result, EmbeddingError):
                failures[index] = result
            elif isinstance(result, Exception):
                failures[index] = ServiceError(f"the tower failed: {type(result).__name__}")
            else:
                rows[index] = result
        return cls(rows, failures, queue_ms, device_ms, replica, fingerprint)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request cost."""

    text_tokens: int
    images: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a request's time went, in milliseconds; of chunks that run at once, the longest."""

    tokenise_ms: float = 0.0
    fetch_ms: float = 0.0
    towers_ms: float = 0.0
    queue_ms: float = 0.0
    device_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The answer to a request.

    Attributes:
        embeddings: float32 [n, dimensions] in the order asked; the row of a failed item is zero.
        usage: what the request cost.
        failures: what went wrong with which item; only where the request allowed failures.
        timings: where its time went.
        fingerprint: what the rows depend on besides the items, for the towers used.
        replicas: which replicas computed rows, as `text:ID`; none for rows that were kept.
    """

    embeddings: Rows
    usage: Usage
    failures: Mapping[int, EmbeddingError] = field(default_factory=dict)
    timings: Timings = field(default_factory=Timings)
    fingerprint: str = ""
    replicas: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer to a request for labels.

    Attributes:
        labels: the labels' texts.
        groups: the name of each label's group; empty where there are none.
        similarities: float32 [n, labels], cosines; the row of a failed item is zero.
        scores: float32 [n, labels]; those of an item add up to 1, within each group.
        usage: what items and labels cost.
        failures, timings, fingerprint, replicas: see `Embeddings`.
    """

    labels: tuple[str, ...]
    groups: tuple[str, ...]
    similarities: Rows
    scores: Rows
    usage: Usage
    failures: Mapping[int, EmbeddingError]
    timings: Timings
    fingerprint: str
    replicas: tuple[str, ...]
