"""The towers on their device: host arrays in, rows out, through graphs where a batch is small.

`launch` queues a batch and returns at once, so that a caller can prepare the next one while the
device works; `Pending.rows` waits for it. One thread at a time may use a runner.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deployments.model.errors import OptionError, TextTooLongError
from deployments.model.output import Rows
from deployments.model.pictures.image import Pixels
from deployments.model.runtime import graphs
from deployments.model.tokenizer import TokenIds
from deployments.model.towers.packing import CPU_TOKENS, filling, text_batches
from deployments.model.towers.text import PackedTexts, TextTower, pack
from deployments.model.towers.vision import VisionTower

Batch = TypeVar("Batch", contravariant=True)


@dataclass(frozen=True)
class Pending:
    """Rows on their way from the device."""

    _rows: Tensor
    _order: NDArray[np.intp]
    _done: torch.cuda.Event | None

    @classmethod
    def of(cls, rows: Tensor, order: NDArray[np.intp]) -> "Pending":
        """Queue the copy to the host; row i of `rows` answers input `order[i]`."""
        if rows.device.type == "cpu":
            return cls(rows, order, None)
        host, done = rows.to("cpu", non_blocking=True), torch.cuda.Event()
        done.record()
        return cls(host, order, done)

    def rows(self) -> Rows:
        """Wait, and return float32 [n, width] in the order of the inputs."""
        if self._done is not None:
            self._done.synchronize()
        rows = np.empty(self._rows.shape, dtype=np.float32)
        rows[self._order] = self._rows.numpy()
        return rows


class Runner(Protocol[Batch]):
    """A tower ready to run; `attention` names its kernel."""

    attention: str

    def launch(self, batch: Batch, /) -> Pending:
        """Queue one batch."""
        ...

    def capture(self, limit: int, /) -> None:
        """Capture the graphs of batches up to a size."""
        ...


class ReferenceRunner(Generic[Batch]):
    """Runs a third-party tower, one batch after the other."""

    attention = "sdpa"

    def __init__(self, forward: Callable[[Batch], Rows]) -> None:
        self._forward = forward

    def launch(self, batch: Batch, /) -> Pending:
        """Run one batch."""
        rows = torch.from_numpy(self._forward(batch))
        return Pending.of(rows, np.arange(len(rows)))

    def capture(self, limit: int, /) -> None:
        """Do nothing: third-party towers have no graphs."""


class TextRunner:
    """Runs the text tower on batches of token ids."""

    def __init__(
        self,
        tower: TextTower,
        device: torch.device,
        attention: str = "sdpa",
        captures: bool = False,
    ) -> None:
        self.attention = attention
        self._captures = captures
        self._tower = tower
        self._device = device
        self._graphs: dict[graphs.Bucket, graphs.Graph] = {}

    def launch(self, token_ids: Sequence[TokenIds], /) -> Pending:
        """Queue one batch.

        Raises:
            TextTooLongError: a text has more tokens than the model has positions.
            OptionError: a token id that the model does not have.
        """
        self._check(token_ids)
        if self._device.type == "cpu" and not self._graphs:
            return self._on_cpu(token_ids)
        bucket = graphs.fitting(tuple(self._graphs), [len(ids) for ids in token_ids])
        packed = self._pack(token_ids, bucket)
        with inference(self._device):
            if bucket is None:
                return Pending.of(self._tower(packed.to(self._device)), packed.order)
            graph = self._graphs[bucket]
            graph.inputs.buffer.copy_(packed.buffer.pin_memory(), non_blocking=True)
            return Pending.of(graph.replay()[: len(token_ids)], packed.order)

    def _on_cpu(self, token_ids: Sequence[TokenIds]) -> Pending:
        """Run a batch in parts, each filled up; a text over the limit is a part of its own."""
        rows = torch.empty((len(token_ids) + 1, self._tower.arch.hidden_size))
        for part in text_batches(token_ids, len(token_ids), CPU_TOKENS):
            texts = [token_ids[index] for index in part]
            missing = filling(sum(map(len, texts)))
            if missing:
                texts.append(np.zeros(missing, dtype=np.int32))
            places = [*part, -1]  # the last row is the filling's
            packed = self._pack(texts, None)
            with inference(self._device):
                rows[[places[index] for index in packed.order]] = self._tower(packed)
        return Pending.of(rows[:-1], np.arange(len(token_ids)))

    def capture(self, limit: int, /) -> None:
        """Capture the graphs of batches up to a number of tokens, where graphs are used."""
        if not self._captures:
            return
        with inference(self._device):
            pool = torch.cuda.graph_pool_handle()
            for bucket in graphs.text_buckets(limit):
                text = np.zeros(bucket.longest, dtype=np.int32)
                inputs = self._pack([text], bucket).to(self._device)
                self._graphs[bucket] = graphs.Graph(self._tower, inputs, pool)

    def _pack(self, token_ids: Sequence[TokenIds], bucket: graphs.Bucket | None) -> PackedTexts:
        return pack(token_ids, self._tower.arch.pad_token_id, torch.device("cpu"), bucket)

    def _check(self, token_ids: Sequence[TokenIds]) -> None:
        """Refuse on the host what would stop the device for good: an index out of range."""
        arch = self._tower.arch
        for index, ids in enumerate(token_ids):
            if len(ids) > arch.max_tokens:
                raise TextTooLongError(
                    f"text {index} has {len(ids):,} tokens, the limit is {arch.max_tokens:,}"
                )
            if not 0 <= ids.min() <= ids.max() < arch.vocab_size:
                raise OptionError(
                    f"text {index} has token ids from {ids.min()} to {ids.max()}, the model knows "
                    f"0 to {arch.vocab_size - 1}; is the tokenizer another model's?"
                )


class VisionRunner:
    """Runs the vision tower on batches of pixels."""

    def __init__(
        self,
        tower: VisionTower,
        device: torch.device,
        attention: str = "sdpa",
        captures: bool = False,
    ) -> None:
        self.attention = attention
        self._captures = captures
        self._tower = tower
        self._device = device
        self._graphs: dict[int, graphs.Graph] = {}

    def launch(self, pixels: Pixels | Tensor, /) -> Pending:
        """Queue one batch of uint8 [n, size, size, 3], on the host or already on the device."""
        order = np.arange(len(pixels))
        bucket = next((count for count in self._graphs if count >= len(order)), None)
        with inference(self._device):
            source = pixels if isinstance(pixels, Tensor) else self._staged(pixels)
            if source.device.type == "cuda":  # keep its memory until this stream has read it
                source.record_stream(torch.cuda.current_stream())
            if bucket is None:
                return Pending.of(self._tower(source.to(self._device, non_blocking=True)), order)
            graph = self._graphs[bucket]
            graph.inputs[: len(order)].copy_(source, non_blocking=True)
            return Pending.of(graph.replay()[: len(order)], order)

    def capture(self, limit: int, /) -> None:
        """Capture the graphs of batches up to a number of pictures, where graphs are used."""
        if not self._captures:
            return
        size = self._tower.arch.image_size
        with inference(self._device):
            pool = torch.cuda.graph_pool_handle()
            for count in (x for x in graphs.GRAPH_IMAGES if x <= limit):
                shape = (count, size, size, 3)
                inputs = torch.zeros(shape, dtype=torch.uint8, device=self._device)
                self._graphs[count] = graphs.Graph(self._tower, inputs, pool)

    def _staged(self, pixels: Pixels) -> Tensor:
        """Copy an array to where a GPU fetches it at full speed while other work runs."""
        pinned = self._device.type == "cuda"
        staged = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=pinned)
        staged.numpy()[:] = pixels
        return staged


@contextmanager
def inference(device: torch.device) -> Iterator[None]:
    """Run without gradients, with streams and events on the device."""
    with torch.inference_mode():
        if device.type == "cuda":
            with torch.cuda.device(device):
                yield
        else:
            yield
