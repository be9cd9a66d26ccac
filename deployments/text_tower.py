"""The TextTower deployment: a thin shell around the batcher and the model's text tower."""

from collections.abc import Sequence

from ray import serve

from deployments.config import AppConfig
from deployments.engine.batcher import within
from deployments.engine.device import Device
from deployments.engine.express import ExpressBatcher
from deployments.engine.finite import FiniteGuard
from deployments.messages import TextChunk, TowerAnswers, TowerRows
from deployments.metrics import TowerMetrics
from deployments.model.output import Row
from deployments.model.tokenizer import TokenIds
from deployments.routing.coalescing import answer_each


class TextTower:
    """Embeds chunks of token ids; runs as the Ray Serve deployment `TextTower`."""

    def __init__(self, config: AppConfig) -> None:
        self._replica = f"text:{serve.get_replica_context().replica_id.unique_id}"
        self._metrics = TowerMetrics("tokens")
        self._device = Device(config, "text")
        self._guard: FiniteGuard[TokenIds] = FiniteGuard(self._in_float32)
        self._batcher: ExpressBatcher[TokenIds, Row] = ExpressBatcher.on(
            self._device,
            self._forward,
            config.text.max_batch_tokens,
            config.text.max_batch_sequences,
            self._metrics.after_batch,
        )

    async def embed(self, chunks: Sequence[TextChunk]) -> TowerAnswers:
        """Return un-normalised rows of each chunk, in its order.

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
            "queued_tokens": float(self._batcher.outstanding_cost),
            "tokens_per_s": float(self._batcher.regular.watchdog.cost_per_s()),
        }

    def check_health(self) -> None:
        """Raise when the device is lost, stuck or wrong, so that Serve replaces the replica."""
        self._metrics.canary(self._device.selfcheck.cosine)
        self._device.check_health()
        if not self._device.selfcheck.running:  # a batch may wait for it, which is not stuck
            self._batcher.check_health()
        self._metrics.sample(self._batcher.regular, self._guard, self._batcher.outstanding_cost)

    async def _embed(self, chunk: TextChunk) -> TowerRows:
        texts = chunk.texts()
        costs = [len(ids) for ids in texts]
        terms, width = chunk.terms, self._device.model.width
        call = await within(terms, self._batcher.submit(texts, costs, terms.lane, terms.timeout_s))
        return TowerRows.of(call.results, width, call.queue_ms, call.device_ms, self._replica)

    def _forward(self, texts: list[TokenIds]) -> Sequence[Row | Exception]:
        return self._guard.check(texts, self._device.model.embed_tokens(texts))

    def _in_float32(self, text: TokenIds) -> Row:
        row: Row = self._device.float32.embed_tokens([text])[0]
        return row
