"""The VisionTower deployment: decodes in a thread pool, then batches and runs the vision tower."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from deployments.batching import Batcher, within
from deployments.config import AppConfig
from deployments.model.errors import ImageError
from deployments.model.image import Pixels, open_image, to_pixels
from deployments.model.output import Row
from deployments.work import ImageChunk, TowerRows


class VisionTower:
    """Embeds chunks of encoded pictures; runs as the Ray Serve deployment `VisionTower`."""

    def __init__(self, config: AppConfig) -> None:
        from deployments.model import ClipModel  # loads torch, which only replicas need

        model = config.model
        self._max_pixels = config.images.max_pixels
        self._decoders = ThreadPoolExecutor(config.vision.decode_threads, "decode")
        self._device_thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._model = ClipModel.load(
            model.source,
            model.revision,
            model.device,
            model.dtype,
            model.attention,
            model.implementation,
            towers=("vision",),
        )
        images = config.vision.max_batch_images
        self._batcher: Batcher[Pixels, Row] = Batcher(self._run, images, images)

    async def embed(self, chunk: ImageChunk) -> TowerRows:
        """Return un-normalised rows of a chunk, in its order; a broken picture fails alone.

        Raises:
            DeadlineError: the caller's time ran out first.
        """
        results = await within(chunk.terms, self._embed(chunk))
        return TowerRows.of(results, self._model.width)

    async def _embed(self, chunk: ImageChunk) -> list[Row | Exception]:
        decoded = await asyncio.gather(*(self._decode(image) for image in chunk.images))
        good = [pixels for pixels in decoded if not isinstance(pixels, ImageError)]
        rows = iter(await self._batcher.submit(good, [1] * len(good), chunk.terms.lane))
        return [item if isinstance(item, ImageError) else next(rows) for item in decoded]

    async def ready(self) -> bool:
        """Answer once the model is loaded."""
        return True

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Report this replica's queue and pace to the autoscaling policy."""
        return {
            "queued_images": float(self._batcher.outstanding_cost),
            "images_per_s": float(self._batcher.progress.per_s()),
        }

    def check_health(self) -> None:
        """Raise when the device thread makes no progress, so that Serve replaces the replica."""
        self._batcher.check_health()

    async def _decode(self, image: bytes) -> Pixels | ImageError:
        size = self._model.architecture.vision.image_size

        def decode() -> Pixels:
            return to_pixels(open_image(image, self._max_pixels), size, self._max_pixels)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._decoders, decode)
        except ImageError as error:
            return error

    async def _run(self, pixels: list[Pixels]) -> Sequence[Row]:
        def forward() -> Sequence[Row]:
            return list(self._model.embed_pixels(np.stack(pixels)))

        return await asyncio.get_running_loop().run_in_executor(self._device_thread, forward)
