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

from deployments.model.output import Rows
from deployments.model.pictures.image import Pixels
from deployments.model.runtime import graphs
from deployments.model.tokenizer import TokenIds
from deployments.model.towers.packing import (
    CPU_TOKENS,
    GraphShape,
    check,
    filling,
    pack,
    text_batches,
)
from deployments.model.towers.text import TextEncoder
from deployments.model.towers.vision import VisionEncoder

Images = Pixels | Tensor | Sequence[Pixels | Tensor]
"""uint8 [size, size, 3] each, on the host or on the device; or all in one, [n, size, size, 3]."""
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
    """Runs the text encoder on batches of token ids."""

    def __init__(
        self,
        encoder: TextEncoder,
        device: torch.device,
        attention: str = "sdpa",
        captures: bool = False,
    ) -> None:
        self.attention = attention
        self._captures = captures
        self._encoder = encoder
        self._device = device
        self._graphs: dict[GraphShape, graphs.Graph] = {}

    def launch(self, token_ids: Sequence[TokenIds], /) -> Pending:
        """Queue one batch.

        Raises:
            TextTooLongError: a text has more tokens than the model has positions.
            OptionError: a token id that the model does not have.
        """
        arch = self._encoder.arch
        check(token_ids, arch)
        if self._device.type == "cpu" and not self._graphs:
            return self._on_cpu(token_ids)
        shape = graphs.fitting(tuple(self._graphs), [len(ids) for ids in token_ids])
        packed = pack(token_ids, arch.pad_token_id, shape)
        with inference(self._device):
            if shape is None:
                return Pending.of(self._encoder(packed.to(self._device)), packed.order)
            graph = self._graphs[shape]
            graph.inputs.buffer.copy_(packed.buffer.pin_memory(), non_blocking=True)
            return Pending.of(graph.replay()[: len(token_ids)], packed.order)

    def _on_cpu(self, token_ids: Sequence[TokenIds]) -> Pending:
        """Run a batch in parts, each filled up; a text over the limit is a part of its own."""
        rows = torch.empty((len(token_ids) + 1, self._encoder.arch.hidden_size))
        for part in text_batches(token_ids, len(token_ids), CPU_TOKENS):
            texts = [token_ids[index] for index in part]
            missing = filling(sum(map(len, texts)))
            if missing:
                texts.append(np.zeros(missing, dtype=np.int32))
            places = [*part, -1]  # the last row is the filling's
            packed = pack(texts, self._encoder.arch.pad_token_id)
            with inference(self._device):
                rows[[places[index] for index in packed.order]] = self._encoder(packed)
        return Pending.of(rows[:-1], np.arange(len(token_ids)))

    def capture(self, limit: int, /) -> None:
        """Capture the graphs of batches up to a number of tokens, where graphs are used."""
        if not self._captures:
            return
        with inference(self._device):
            pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
            for shape in graphs.text_shapes(limit):
                text = np.zeros(shape.longest, dtype=np.int32)
                packed = pack([text], self._encoder.arch.pad_token_id, shape)
                inputs = packed.to(self._device)
                self._graphs[shape] = graphs.Graph(self._encoder, inputs, stream, pool)


class VisionRunner:
    """Runs the vision encoder on batches of pixels."""

    def __init__(
        self,
        encoder: VisionEncoder,
        device: torch.device,
        attention: str = "sdpa",
        captures: bool = False,
    ) -> None:
        self.attention = attention
        self._captures = captures
        self._encoder = encoder
        self._device = device
        self._graphs: dict[int, graphs.Graph] = {}

    def launch(self, images: Images, /) -> Pending:
        """Queue one batch."""
        order = np.arange(len(images))
        count = next((count for count in self._graphs if count >= len(order)), None)
        with inference(self._device):
            source = self._gathered(images)
            if count is None:
                return Pending.of(self._encoder(source.to(self._device, non_blocking=True)), order)
            graph = self._graphs[count]
            graph.inputs[: len(order)].copy_(source, non_blocking=True)
            return Pending.of(graph.replay()[: len(order)], order)

    def capture(self, limit: int, /) -> None:
        """Capture the graphs of batches up to a number of images, where graphs are used."""
        if not self._captures:
            return
        size = self._encoder.arch.image_size
        with inference(self._device):
            pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
            for count in (x for x in graphs.GRAPH_IMAGES if x <= limit):
                shape = (count, size, size, 3)
                inputs = torch.zeros(shape, dtype=torch.uint8, device=self._device)
                self._graphs[count] = graphs.Graph(self._encoder, inputs, stream, pool)

    def _gathered(self, images: Images) -> Tensor:
        """Return the images as one tensor, on the device if one of them is there.

        Those on the host are copied once, to where a GPU fetches them at full speed while other
        work runs.
        """
        if isinstance(images, Tensor) or any(isinstance(image, Tensor) for image in images):
            tensors = [torch.as_tensor(image, device=self._device) for image in images]
            for tensor in tensors:
                if tensor.device.type == "cuda":  # keep its memory until this stream has read it
                    tensor.record_stream(torch.cuda.current_stream())
            return torch.stack(tensors)
        size = self._encoder.arch.image_size
        pinned = self._device.type == "cuda"
        gathered = torch.empty((len(images), size, size, 3), dtype=torch.uint8, pin_memory=pinned)
        np.stack(list(images), out=gathered.numpy())
        return gathered


@contextmanager
def inference(device: torch.device) -> Iterator[None]:
    """Run without gradients, with streams and events on the device."""
    with torch.inference_mode():
        if device.type == "cuda":
            with torch.cuda.device(device):
                yield
        else:
            yield
