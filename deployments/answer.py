"""What a tower answers a Router, and a Router its callers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from deployments.model.errors import EmbeddingError
from deployments.model.output import Rows
from deployments.work import TowerRows


@dataclass(frozen=True, slots=True)
class TowerAnswers:
    """A tower's answer to one call.

    Attributes:
        parts: for each chunk of the call its rows, or why it has none.
        fingerprint: of the replica that made them.
    """

    parts: tuple[TowerRows | EmbeddingError, ...]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request cost."""

    text_tokens: int
    images: int


@dataclass(slots=True)
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
