"""The TextTower deployment: a thin shell around the batcher and the model's text tower."""

from collections.abc import Sequence

from deployments.batching import Batcher, within
from deployments.config import AppConfig
from deployments.device import Device
from deployments.finite import FiniteGuard
from deployments.metrics import TowerMetrics
from deployments.model.output import Row
from deployments.model.tokenizer import TokenIds
from deployments.work import TextChunk, TowerRows


class TextTower:
    """Embeds chunks of token ids; runs as the Ray Serve deployment `TextTower`."""

    def __init__(self, config: AppConfig) -> None:
        self._metrics = TowerMetrics("tokens")
        self._device = Device(config, "text")
        self._guard: FiniteGuard[TokenIds] = FiniteGuard(self._in_float32)
        self._batcher: Batcher[TokenIds, Row] = Batcher(
            self._run,
            config.text.max_batch_tokens,
            config.text.max_batch_sequences,
            after_batch=self._metrics.after_batch,
        )

    async def embed(self, chunk: TextChunk) -> TowerRows:
        """Return un-normalised rows of a chunk, in its order.

        Raises:
            DeadlineError: the caller's time ran out first.
        """
        texts = chunk.texts()
        costs = [len(ids) for ids in texts]
        results = await within(chunk.terms, self._batcher.submit(texts, costs, chunk.terms.lane))
        return TowerRows.of(results, self._device.model.width)

    async def ready(self) -> bool:
        """Answer once the model is loaded and warm."""
        return True

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Report this replica's queue and pace to the autoscaling policy."""
        return {
            "queued_tokens": float(self._batcher.outstanding_cost),
            "tokens_per_s": float(self._batcher.progress.per_s()),
        }

    def check_health(self) -> None:
        """Raise when the device is lost or stuck, so that Serve replaces the replica."""
        self._device.check_health()
        self._batcher.check_health()
        self._metrics.sample(self._batcher, self._guard, self._batcher.outstanding_cost)

    async def _run(self, texts: list[TokenIds]) -> Sequence[Row | Exception]:
        return await self._device.run(self._forward, texts)

    def _forward(self, texts: list[TokenIds]) -> Sequence[Row | Exception]:
        return self._guard.check(texts, self._device.model.embed_tokens(texts))

    def _in_float32(self, text: TokenIds) -> Row:
        row: Row = self._device.float32.embed_tokens([text])[0]
        return row
