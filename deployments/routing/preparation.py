"""Turns the items of a request into what the towers take: token ids and encoded images."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from deployments.image_config import ImageConfig
from deployments.images.sources import ImageSources
from deployments.messages import ImageItem, Item, TextItem, TokenItem
from deployments.model.architecture import Architecture
from deployments.model.errors import EmbeddingError, InputError
from deployments.model.pictures.image import open_image
from deployments.model.tokenizer import TextTokenizer, TokenIds, Truncate
from deployments.routing.admission import Hold
from deployments.routing.tower_request import together

T = TypeVar("T", TokenIds, bytes)

SMALL_LENGTH = 1000  # characters that are tokenised in less time than a thread takes to begin
# Until its answer is there, an image by URL is taken to have a quarter more than the last ones.
FIRST_GUESS_BYTES, MARGIN, LAST = 256 * 1024, 1.25, 32
REMOTE = ("http:", "https:", "s3:")
# What Ray and gRPC keep of an image until its answer: the call's arguments, its message and the
# bytes on their way; the Router's own are one more (benchmarks/README.md).
SENT_COPIES = 3

Sources = Mapping[bytes | str, Sequence[int]]
"""Where images are, each once, and their places in the request."""


@dataclass(frozen=True)
class Prepared(Generic[T]):
    """What becomes of a request's texts, or of its images.

    Attributes:
        items: token ids or encoded images, by index in the request.
        failures: of those that cannot be had, by index in the request.
        took_ms: how long it took; 0 where there was nothing to do.
    """

    items: dict[int, T]
    failures: dict[int, EmbeddingError]
    took_ms: float

    @classmethod
    def of(cls, found: Mapping[int, T | EmbeddingError], start_s: float) -> "Prepared[T]":
        """Tell items and failures apart."""
        return cls(
            {i: x for i, x in found.items() if not isinstance(x, EmbeddingError)},
            {i: x for i, x in found.items() if isinstance(x, EmbeddingError)},
            1000 * (time.perf_counter() - start_s) if found else 0.0,
        )


class Preparer:
    """Tokenises texts and gets images, off the event loop; one per Router.

    Args:
        folder: of the checkpoint's tokenizer.
        architecture: its sizes.
        config: where images may come from, and their limits.
        sent_images: images of one request that are sent to a tower at once.
    """

    def __init__(
        self, folder: Path, architecture: Architecture, config: ImageConfig, sent_images: int
    ) -> None:
        self._tokenizer = TextTokenizer(folder, architecture.text)
        self._images = ImageSources(config)
        self._max_pixels = config.max_pixels
        self._sent_images = sent_images
        self._usual_bytes = float(FIRST_GUESS_BYTES)  # of an image that was fetched of late
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="router")

    async def tokenise(
        self, items: Sequence[Item], task: str | None, truncate: Truncate
    ) -> Prepared[TokenIds]:
        """Return the token ids of the texts; a text's failure is its own.

        Raises:
            OptionError: the model has no such task.
        """
        texts = {i: item.text for i, item in enumerate(items) if isinstance(item, TextItem)}
        given = {i: x.token_ids for i, x in enumerate(items) if isinstance(x, TokenItem)}
        start_s = time.perf_counter()
        if not texts and not given:
            return Prepared({}, {}, 0.0)

        def tokenise() -> dict[int, TokenIds | EmbeddingError]:
            options = task, None, truncate
            encoded = self._tokenizer.encode_each(list(texts.values()), *options)
            wrapped = self._tokenizer.wrap_each(list(given.values()), *options)
            return dict(zip([*texts, *given], [*encoded, *wrapped], strict=True))

        if sum(map(len, [*texts.values(), *given.values()])) <= SMALL_LENGTH:
            tokenised = tokenise()
        else:
            loop = asyncio.get_running_loop()
            tokenised = await loop.run_in_executor(self._threads, tokenise)
        return Prepared.of(tokenised, start_s)

    async def fetch(self, sources: Sources, hold: Hold) -> Prepared[bytes]:
        """Admit by what is known of the sizes, then get the images; a failure is an image's own.

        Args:
            sources: of the images.
            hold: of bytes; in the end it has what the images take, copies included.

        Raises:
            RequestTooLargeError, OverloadedError: they take more than there is room for.
        """
        start_s = time.perf_counter()
        count = max(len(sources), 1)
        copies = 1 + SENT_COPIES * min(1, self._sent_images / count)
        remote = min(int(copies * MARGIN * self._usual_bytes), hold.most // count)
        expected = [remote if _is_remote(x) else int(copies * _inline_bytes(x)) for x in sources]
        hold.resize(hold.units + sum(expected))
        found: dict[int, bytes | EmbeddingError] = {}

        async def fetch(source: bytes | str, places: Sequence[int], held: int) -> None:
            data = await self._fetch(source, held, hold, copies)
            found.update(dict.fromkeys(places, data))

        pairs = zip(sources.items(), expected, strict=True)
        await together([fetch(*source, held) for source, held in pairs])
        return Prepared.of(found, start_s)

    async def _fetch(
        self, source: bytes | str, held: int, hold: Hold, copies: float
    ) -> bytes | EmbeddingError:
        """Return the encoded image once its header shows a size within the limits."""

        def claim(size_bytes: int) -> None:
            nonlocal held
            taken = int(copies * size_bytes)
            hold.resize(hold.units + taken - held)
            held = taken

        try:
            data = await self._images.read(source, claim)
            await asyncio.get_running_loop().run_in_executor(
                self._threads, open_image, data, self._max_pixels
            )
        except InputError as error:
            claim(0)
            return error
        claim(len(data))
        if _is_remote(source):
            self._usual_bytes += (len(data) - self._usual_bytes) / LAST
        return data


def sources_of(items: Sequence[Item]) -> Sources:
    """Return where the images of a request are, each once."""
    places: dict[bytes | str, list[int]] = {}
    for index, item in enumerate(items):
        if isinstance(item, ImageItem):
            places.setdefault(item.source, []).append(index)
    return places


def _is_remote(source: bytes | str) -> bool:
    return isinstance(source, str) and source.lstrip()[:6].lower().startswith(REMOTE)


def _inline_bytes(source: bytes | str) -> int:
    return len(source) if isinstance(source, bytes) else len(source) * 3 // 4
