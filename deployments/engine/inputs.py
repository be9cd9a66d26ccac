"""What the engine has to know of each tower's inputs: how they are prepared, counted and run."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, Union

from deployments.config import AppConfig
from deployments.engine import self_check
from deployments.engine.self_check import Batches
from deployments.messages import ImageChunk, TextChunk
from deployments.model.pictures.image import Pixels
from deployments.model.tokenizer import TokenIds

if TYPE_CHECKING:
    from torch import Tensor

    from deployments.model import ClipModel
    from deployments.model.runtime.runners import Pending

C = TypeVar("C", bound=TextChunk | ImageChunk, contravariant=True)
T = TypeVar("T")
TowerName = Literal["text", "vision"]
Image = Union[Pixels, "Tensor"]
"""A decoded image, uint8 [size, size, 3]: on the host, or on the GPU that decoded it."""

LONG_TOKENS = {"cpu": 256, "cuda": 1536}  # a GPU may have another kernel for long texts
SMALL_IMAGES = 2  # calls of so few do not wait for the decoding of others


class Inputs(Protocol[C, T]):
    """The inputs of one tower.

    Attributes:
        tower: its name.
        max_cost: budget of a batch, in tokens or images.
        max_items: most items of a batch.
        cpu_cost: budget of a batch on a CPU, which does larger ones hardly faster
            (benchmarks/README.md), and who comes next would wait longer.
        cpu_cost_beside: on a CPU, what may run beside a batch, which keeps most of it.
    """

    tower: TowerName
    max_cost: int
    max_items: int
    cpu_cost: int
    cpu_cost_beside: int

    def costs(self, chunk: C) -> list[int]:
        """Return the tokens or images of each item of a chunk."""
        ...

    def items(self, chunk: C) -> list[T] | None:
        """Return the items of a chunk that needs no preparing, else None."""
        ...

    def prepare(
        self, model: "ClipModel", chunk: C
    ) -> AbstractAsyncContextManager[tuple[list[T], Mapping[int, Exception]]]:
        """Turn a chunk into what `launch` takes; held as long as the items wait and run.

        Gives the items in order, and by place in the chunk why others cannot be run.
        """
        ...

    def launch(self, model: "ClipModel", items: Sequence[T]) -> "Pending":
        """Queue one batch, on the device's thread; rows are un-normalised float32 [n, width]."""
        ...

    def pinned(self, model: "ClipModel") -> Batches:
        """Return the batches of the self-check."""
        ...


class TextInputs:
    """Texts: an item is an int32 array of token ids, and costs as many tokens."""

    tower: TowerName = "text"
    cpu_cost = 2048
    cpu_cost_beside = 128

    def __init__(self, config: AppConfig) -> None:
        self.max_cost = config.text.max_batch_tokens
        self.max_items = config.text.max_batch_sequences

    def costs(self, chunk: TextChunk) -> list[int]:
        """Return the tokens of each text."""
        costs: list[int] = chunk.lengths.tolist()
        return costs

    def items(self, chunk: TextChunk) -> list[TokenIds]:
        """Cut the chunk's token ids into texts."""
        return chunk.texts()

    @asynccontextmanager
    async def prepare(
        self, model: "ClipModel", chunk: TextChunk
    ) -> AsyncIterator[tuple[list[TokenIds], Mapping[int, Exception]]]:
        """Cut the chunk's token ids into texts."""
        yield self.items(chunk), {}

    def launch(self, model: "ClipModel", items: Sequence[TokenIds]) -> "Pending":
        """Queue one batch of texts."""
        return model.launch_tokens(items)

    def pinned(self, model: "ClipModel") -> Batches:
        """Return texts in several scripts, and one that is long for the device."""
        device = model.choices["device"].partition(":")[0]
        long = min(LONG_TOKENS.get(device, 256), model.architecture.text.max_tokens)
        encode = partial(model.tokenizer.encode, max_length=long, truncate=True)
        return self_check.pinned_texts(encode, long)


class ImageInputs:
    """Images: an item is a decoded one, and costs 1.

    Args:
        config: budgets and threads of the vision tower.
        max_pixels: larger images are refused.
        after_decode: told how long the images of a chunk took, with the wait for a thread.
    """

    tower: TowerName = "vision"
    cpu_cost = 8
    cpu_cost_beside = 2

    def __init__(
        self,
        config: AppConfig,
        max_pixels: int,
        after_decode: Callable[[float], None] | None = None,
    ) -> None:
        self.max_cost = self.max_items = config.vision.max_batch_images
        self._max_pixels = max_pixels
        self._after_decode = after_decode
        self._threads = ThreadPoolExecutor(config.vision.decode_threads, "decode")
        # Decoded images are large: of each kind, about two batches are ahead of the device.
        chunks_ahead = max(2, 2 * self.max_items // config.router.max_images_per_chunk)
        kinds = "interactive", "small", "bulk"
        self._ahead = {kind: asyncio.Semaphore(chunks_ahead) for kind in kinds}

    def costs(self, chunk: ImageChunk) -> list[int]:
        """Count each image once."""
        return [1] * len(chunk.images)

    def items(self, chunk: ImageChunk) -> None:
        """Return nothing: images are decoded first."""

    @asynccontextmanager
    async def prepare(
        self, model: "ClipModel", chunk: ImageChunk
    ) -> AsyncIterator[tuple[list[Image], Mapping[int, Exception]]]:
        """Decode the images; a broken one fails alone."""
        lane = chunk.terms.lane
        is_small = lane == "interactive" and len(chunk.images) <= SMALL_IMAGES
        async with self._ahead["small" if is_small else lane]:
            start_s = time.perf_counter()
            decoded = await asyncio.get_running_loop().run_in_executor(
                self._threads, model.decode_images, chunk.images, self._max_pixels
            )
            if self._after_decode is not None:
                self._after_decode(time.perf_counter() - start_s)
            yield list(decoded.pixels), decoded.failures

    def launch(self, model: "ClipModel", items: Sequence[Image]) -> "Pending":
        """Queue one batch of decoded images."""
        return model.launch_pixels(items)

    def pinned(self, model: "ClipModel") -> Batches:
        """Return two images of the checkpoint's size."""
        return self_check.pinned_images(model.architecture.vision.image_size)
