"""What a request came to at both towers, before its rows are put together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deployments.errors import TowerUnavailableError
from deployments.messages import Timings
from deployments.model.errors import EmbeddingError
from deployments.model.output import Rows
from deployments.model.tokenizer import TokenIds
from deployments.model.weights.fingerprint import weights_of
from deployments.routing.fingerprints import Fingerprints
from deployments.routing.preparation import Prepared
from deployments.routing.tower_request import ImageRequest, TextRequest

AnyTowerRequest = TextRequest | ImageRequest


@dataclass(frozen=True)
class Parts:
    """The parts of one request.

    Attributes:
        texts: as they were tokenised.
        images: as they were fetched.
        requests: to the towers, answered.
        towers_ms: how long both took, at once.
    """

    texts: Prepared[TokenIds]
    images: Prepared[bytes]
    requests: Sequence[AnyTowerRequest]
    towers_ms: float

    def merge(self, num_items: int, width: int) -> tuple[Rows, dict[int, EmbeddingError]]:
        """Return the rows of both towers in the request's order, and every failure."""
        rows = np.zeros((num_items, width), np.float32)
        failures = self.texts.failures | self.images.failures
        for request in self.requests:
            rows[request.indices] = request.rows
            failures |= request.failures
        return rows, failures

    def made_by(self, fingerprints: Fingerprints) -> list[tuple[str, str]]:
        """Return the towers that made rows, each with its fingerprint."""
        return [
            (request.client.name, fingerprints.combined(told))
            for request in self.requests
            for told in sorted(request.fingerprints)
        ]

    def check_comparable(self) -> None:
        """Refuse rows of two checkpoints: a similarity between them means nothing.

        Raises:
            TowerUnavailableError: a checkpoint is rolled out, and one tower alone has it yet.
        """
        told = {x for request in self.requests for x in request.fingerprints}
        if len(set(map(weights_of, told))) > 1:
            raise TowerUnavailableError(
                "other weights are rolled out, which one tower has and the other has not yet; "
                "retry shortly"
            )

    def timings(self) -> Timings:
        """Return where the time went."""
        return Timings(
            self.texts.took_ms,
            self.images.took_ms,
            self.towers_ms,
            max((request.queue_ms for request in self.requests), default=0.0),
            max((request.device_ms for request in self.requests), default=0.0),
        )
