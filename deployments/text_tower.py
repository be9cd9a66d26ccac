"""The TextTower deployment: a thin shell around the batcher and the model's text tower."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from deployments.batching import Batcher, within
from deployments.config import AppConfig
from deployments.model.output import Row
from deployments.model.tokenizer import TokenIds
from deployments.work import TextChunk, TowerRows


class TextTower:
    """Embeds chunks of token ids; runs as the Ray Serve deployment `TextTower`."""

    def __init__(self, config: AppConfig) -> None:
        from deployments.model import ClipModel  # loads torch, which only replicas need

        model = config.model
        self._device_thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._model = ClipModel.load(
            model.source,
            model.revision,
            model.device,
            model.dtype,
            model.attention,
            model.implementation,
            towers=("text",),
        )
        self._batcher: Batcher[TokenIds, Row] = Batcher(
            self._run, config.text.max_batch_tokens, config.text.max_batch_sequences
        )

    async def embed(self, chunk: TextChunk) -> TowerRows:
        """Return un-normalised rows of a chunk, in its order.

        Raises:
            DeadlineError: the caller's time ran out first.
        """
        texts = chunk.texts()
        costs = [len(ids) for ids in texts]
        results = await within(chunk.terms, self._batcher.submit(texts, costs, chunk.terms.lane))
        return TowerRows.of(results, self._model.width)

    async def ready(self) -> bool:
        """Answer once the model is loaded."""
        return True

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Report this replica's queue and pace to the autoscaling policy."""
        return {
            "queued_tokens": float(self._batcher.outstanding_cost),
            "tokens_per_s": float(self._batcher.progress.per_s()),
        }

    def check_health(self) -> None:
        """Raise when the device thread makes no progress, so that Serve replaces the replica."""
        self._batcher.check_health()

    async def _run(self, texts: list[TokenIds]) -> Sequence[Row]:
        embed = self._model.embed_tokens
        rows = await asyncio.get_running_loop().run_in_executor(self._device_thread, embed, texts)
        return list(rows)
