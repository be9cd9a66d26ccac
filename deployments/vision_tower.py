"""The VisionTower deployment: decodes in threads, then batches and runs the vision tower."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Union

from ray import serve

from deployments.config import AppConfig
from deployments.engine.batcher import within
from deployments.engine.call import Call
from deployments.engine.device import Device
from deployments.engine.express import ExpressBatcher
from deployments.engine.finite import FiniteGuard
from deployments.messages import ImageChunk, TowerAnswers, TowerRows
from deployments.metrics import TowerMetrics
from deployments.model.output import Row
from deployments.model.pictures.image import Pixels
from deployments.routing.coalescing import answer_each

if TYPE_CHECKING:
    from torch import Tensor

SMALL_IMAGES = 2  # calls of so few do not wait for the decoding of others
Picture = Union[Pixels, "Tensor"]  # on the host, or on the GPU that decoded it


class VisionTower:
    """Embeds chunks of encoded pictures; runs as the Ray Serve deployment `VisionTower`."""

    def __init__(self, config: AppConfig) -> None:
        self._replica = f"vision:{serve.get_replica_context().replica_id.unique_id}"
        images = config.vision.max_batch_images
        self._max_pixels = config.images.max_pixels
        self._metrics = TowerMetrics("images")
        self._device = Device(config, "vision")
        self._guard: FiniteGuard[Picture] = FiniteGuard(self._in_float32)
        self._batcher: ExpressBatcher[Picture, Row] = ExpressBatcher.on(
            self._device, self._forward, images, images, self._metrics.after_batch
        )
        self._decoders = ThreadPoolExecutor(config.vision.decode_threads, "decode")
        # Decoded pictures are large: of each kind, about two batches are ahead of the device.
        chunks_ahead = max(2, 2 * images // config.router.max_images_per_chunk)
        kinds = "interactive", "small", "bulk"
        self._ahead = {kind: asyncio.Semaphore(chunks_ahead) for kind in kinds}
        self._outstanding = 0

    async def embed(self, chunks: Sequence[ImageChunk]) -> TowerAnswers:
        """Return un-normalised rows of each chunk, in its order; a broken picture fails alone.

        A chunk whose caller's time runs out has a DeadlineError for its rows.
        """
        parts = await answer_each(self._embed, chunks)
        return TowerAnswers(parts, self._device.model.fingerprint)

    async def ready(self) -> str:
        """Answer, once the model is loaded and warm, with its fingerprint."""
        return self._device.model.fingerprint

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Report this replica's queue and pace to the autoscaling policy."""
        return {
            "queued_images": float(self._outstanding),
            "images_per_s": float(self._batcher.regular.watchdog.cost_per_s()),
        }

    def check_health(self) -> None:
        """Raise when the device is lost, stuck or wrong, so that Serve replaces the replica."""
        self._metrics.canary(self._device.selfcheck.cosine)
        self._device.check_health()
        if not self._device.selfcheck.running:  # a batch may wait for it, which is not stuck
            self._batcher.check_health()
        self._metrics.sample(self._batcher.regular, self._guard, self._outstanding)

    async def _embed(self, chunk: ImageChunk) -> TowerRows:
        with self._counted(len(chunk.images)):
            results, call = await within(chunk.terms, self._decode_and_run(chunk))
        width = self._device.model.width
        return TowerRows.of(results, width, call.queue_ms, call.device_ms, self._replica)

    async def _decode_and_run(self, chunk: ImageChunk) -> tuple[list[Row | Exception], Call[Row]]:
        arrived_s, terms = time.perf_counter(), chunk.terms
        is_small = terms.lane == "interactive" and len(chunk.images) <= SMALL_IMAGES
        async with self._ahead["small" if is_small else terms.lane]:
            start_s = time.perf_counter()
            decoded = await asyncio.get_running_loop().run_in_executor(
                self._decoders, self._device.model.decode_images, chunk.images, self._max_pixels
            )
            self._metrics.decoded(time.perf_counter() - start_s)
            pictures = list(decoded.pixels)
            costs = [1] * len(pictures)
            left_s = terms.timeout_s - (time.perf_counter() - arrived_s)
            call = await self._batcher.submit(pictures, costs, terms.lane, left_s)
        results: dict[int, Row | Exception] = dict(zip(decoded.kept, call.results, strict=True))
        results |= decoded.failures
        return [results[index] for index in range(len(chunk.images))], call

    def _forward(self, pictures: list[Picture]) -> Sequence[Row | Exception]:
        return self._guard.check(pictures, self._device.model.embed_pictures(pictures))

    def _in_float32(self, picture: Picture) -> Row:
        row: Row = self._device.float32.embed_pictures([picture])[0]
        return row

    @contextmanager
    def _counted(self, images: int) -> Iterator[None]:
        """Count pictures as outstanding for the length of the block."""
        self._outstanding += images
        try:
            yield
        finally:
            self._outstanding -= images
