"""The VisionTower deployment: the vision tower's engine as Ray Serve runs it."""

from collections.abc import Sequence

from ray import serve

from deployments.config import AppConfig
from deployments.engine.engine import TowerEngine
from deployments.engine.inputs import ImageInputs
from deployments.messages import ImageChunk, TowerRows
from deployments.metrics import TowerMetrics
from deployments.model.errors import EmbeddingError


class VisionTower:
    """Embeds chunks of encoded images; runs as the Ray Serve deployment `VisionTower`."""

    def __init__(self, config: AppConfig) -> None:
        replica = f"vision:{serve.get_replica_context().replica_id.unique_id}"
        metrics = TowerMetrics("images")
        inputs = ImageInputs(config, config.images.max_pixels, metrics.decoded)
        self._engine = TowerEngine(config, inputs, metrics, replica)

    async def embed(self, chunks: Sequence[ImageChunk]) -> tuple[TowerRows | EmbeddingError, ...]:
        """Decode the images of each chunk, and return un-normalised rows in its order.

        A broken image fails alone, and a chunk's failure is its own; where its caller's time runs
        out, a DeadlineError.
        """
        return await self._engine.answer(chunks)

    async def ready(self) -> str:
        """Answer, once the model is loaded and warm, with its fingerprint."""
        return self._engine.fingerprint

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Report this replica's queue and pace to the autoscaling policy."""
        engine = self._engine
        return {"queued_images": float(engine.outstanding), "images_per_s": engine.cost_per_s}

    def check_health(self) -> None:
        """Raise when the device is lost, stuck or wrong, so that Serve replaces the replica."""
        self._engine.check_health()
