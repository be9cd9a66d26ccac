"""A Router that is a stand-in: no Ray, no towers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from deployments.config import AppConfig
from deployments.messages import Classification, Embeddings, Timings, Usage
from deployments.model.architecture import Architecture
from deployments.model.errors import EmbeddingError
from deployments.model.weights.source import DEMO
from deployments.routing.admission import Budget
from deployments.routing.interactive import Interactive


class Metrics:
    """Counts the refusals, and what was under way meanwhile."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.stages_ms: dict[str, float] = {}

    @contextmanager
    def busy(self) -> Iterator[None]:
        yield

    @contextmanager
    def refusals(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.refused.append(type(error).__name__)
            raise

    def stages(self, spent_ms: dict[str, float]) -> None:
        self.stages_ms = spent_ms


class StandIn:
    """A Router that answers each item with a row of ones, or with an error."""

    def __init__(self, config: AppConfig) -> None:
        self.config = config
        self.architecture = Architecture.read(DEMO)
        self.metrics = Metrics()
        self.interactive = Interactive()
        self.bytes = Budget("bytes", config.router.max_queued_bytes, config.router.bulk_share)
        self.asked: list[tuple[Any, ...]] = []
        self.error: Exception | None = None
        self.failures: dict[int, EmbeddingError] = {}
        self.is_ready = True

    async def embed(self, *asked: Any) -> Embeddings:
        self.asked.append(asked)
        if self.error is not None:
            raise self.error
        rows = np.ones((len(asked[0]), 8), np.float32)
        return Embeddings(rows, Usage(3, 0), {}, Timings(towers_ms=2.0), "text:f", ("text:r",))

    async def classify(self, *asked: Any, **options: Any) -> Classification:
        self.asked.append((*asked, options))
        labels, count = tuple(asked[1]), len(asked[0])
        scores = np.full((count, len(labels)), 1 / len(labels), np.float32)
        rest = Usage(3, 0), self.failures, Timings(), "text:f", ("text:r",)
        return Classification(labels, (), scores - 1, scores, *rest)

    async def ready(self) -> bool:
        return self.is_ready

    async def fingerprints(self) -> dict[str, str]:
        return {"text": "f"}
