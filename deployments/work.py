"""What crosses a handle: items, chunks and rows as plain dataclasses; and the service's errors.

EmbeddingError
├── InputError (deployments.model.errors)
│   ├── RequestError         the request as a whole: shape, limits
│   │   ├── BodyTooLargeError
│   │   ├── FingerprintError
│   │   ├── RequestTooLargeError
│   │   ├── UnauthorizedError
│   │   │   ├── KeyFormatError
│   │   │   └── MissingKeyError
│   │   └── UnknownModelError
│   └── ImageSourceError     a picture that cannot be had: refused address, failed download
└── ServiceError             not the caller's fault; worth another try later
    ├── OverloadedError      says when to come back
    │   └── RateLimitError   the API key's own limit
    ├── TowerUnavailableError
    └── DeadlineError

Every argument goes to `super().__init__`, so that each survives pickling between processes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from deployments.engine.queue import Lane
from deployments.model.errors import EmbeddingError, ImageError, InputError
from deployments.model.output import Row, Rows
from deployments.model.tokenizer import TokenIds


class RequestError(InputError):
    """A request that no item of it can mend: its shape, its size, an unknown name."""


class BodyTooLargeError(RequestError):
    """More bytes than the server reads."""


class FingerprintError(RequestError):
    """The caller asks for vectors of other weights, precision or preprocessing than are served."""


class RequestTooLargeError(RequestError):
    """More work than the server takes at once, or an item that no batch can hold."""


class UnauthorizedError(RequestError):
    """No API key, or one that is not known."""


class MissingKeyError(UnauthorizedError):
    """No API key at all."""


class KeyFormatError(UnauthorizedError):
    """An Authorization header of another form than `Bearer KEY`."""


class UnknownModelError(RequestError):
    """A model that this server does not serve."""


class ImageSourceError(ImageError):
    """A picture that cannot be had from where it is said to be."""


class ServiceError(EmbeddingError):
    """The service could not do what was rightly asked; the same request may work later."""


class OverloadedError(ServiceError):
    """Too much work is outstanding; `retry_after_s` is when that will have drained."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        """Return the message alone."""
        return str(self.args[0])


class RateLimitError(OverloadedError):
    """An API key has used up a limit of its own."""


class TowerUnavailableError(ServiceError):
    """A tower's replicas died or cannot be reached."""


class DeadlineError(ServiceError):
    """The request's time ran out."""


@dataclass(frozen=True, slots=True)
class TextItem:
    """One text to embed."""

    text: str


@dataclass(frozen=True, slots=True)
class ImageItem:
    """One picture: encoded bytes, or a URL, data URI, base64 or s3:// string."""

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
        return np.split(self.token_ids, np.cumsum(self.lengths)[:-1])


@dataclass(frozen=True, slots=True)
class ImageChunk:
    """Encoded pictures of bounded cost on their way to the vision tower."""

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
    """

    rows: Rows
    failures: Mapping[int, EmbeddingError] = field(default_factory=dict)
    queue_ms: float = 0.0
    device_ms: float = 0.0
    replica: str = ""

    @classmethod
    def of(
        cls,
        results: Sequence[Row | Exception],
        width: int,
        queue_ms: float = 0.0,
        device_ms: float = 0.0,
        replica: str = "",
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
        return cls(rows, failures, queue_ms, device_ms, replica)


def cut(costs: Sequence[float], max_cost: float) -> Iterator[slice]:
    """Yield runs of items whose costs add up to at most `max_cost`; a larger item goes alone."""
    start, total = 0, 0.0
    for index, cost in enumerate(costs):
        if index > start and total + cost > max_cost * (1 + 1e-9):  # sums of shares are inexact
            yield slice(start, index)
            start, total = index, 0.0
        total += cost
    if start < len(costs):
        yield slice(start, len(costs))
