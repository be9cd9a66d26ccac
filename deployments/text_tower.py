"""The TextTower deployment: the text tower's engine as Ray Serve runs it."""

import math
from collections.abc import Sequence

from ray import serve

from deployments.config import AppConfig
from deployments.engine.engine import TowerEngine
from deployments.engine.inputs import TextInputs
from deployments.messages import TextChunk, TowerRows
from deployments.metrics import TowerMetrics
from deployments.model.errors import EmbeddingError


class TextTower:
    """Embeds chunks of token ids; runs as the Ray Serve deployment `TextTower`."""

    def __init__(self, config: AppConfig) -> None:
        replica = f"text:{serve.get_replica_context().replica_id.unique_id}"
        metrics = TowerMetrics("tokens")
        self._engine = TowerEngine(config, TextInputs(config), metrics, replica)

    async def embed(self, chunks: Sequence[TextChunk]) -> tuple[TowerRows | EmbeddingError, ...]:
        """Return un-normalised rows of each chunk, in its order.

        A chunk's failure is its own; where its caller's time runs out, a DeadlineError.
        """
        return await self._engine.answer(chunks)

    async def ready(self) -> str:
        """Answer, once the model is loaded and warm, with its fingerprint."""
        return self._engine.fingerprint

    async def logit_scale(self) -> tuple[str, float]:
        """Return the fingerprint, and what cosines are multiplied by for probabilities."""
        return self._engine.fingerprint, math.exp(self._engine.model.logit_scale)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Report this replica's queue and pace to the autoscaling policy."""
        engine = self._engine
        return {"queued_tokens": float(engine.outstanding), "tokens_per_s": engine.cost_per_s}

    def check_health(self) -> None:
        """Raise when the device is lost, stuck or wrong, so that Serve replaces the replica."""
        self._engine.check_health()
