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
    """

    def __init__(self, folder: Path, architecture: Architecture, config: ImageConfig) -> None:
        self._tokenizer = TextTokenizer(folder, architecture.text)
        self._images = ImageSources(config)
        self._max_pixels = config.max_pixels
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
            hold: of bytes; in the end it has what the images take.

        Raises:
            RequestTooLargeError, OverloadedError: they take more than there is room for.
        """
        start_s = time.perf_counter()
        remote = min(int(MARGIN * self._usual_bytes), hold.most // max(len(sources), 1))
        expected = [remote if _is_remote(x) else _inline_bytes(x) for x in sources]
        hold.resize(hold.units + sum(expected))
        found: dict[int, bytes | EmbeddingError] = {}

        async def fetch(source: bytes | str, places: Sequence[int], held: int) -> None:
            found.update(dict.fromkeys(places, await self._fetch(source, held, hold)))

        pairs = zip(sources.items(), expected, strict=True)
        await together([fetch(*source, held) for source, held in pairs])
        return Prepared.of(found, start_s)

    async def _fetch(self, source: bytes | str, held: int, hold: Hold) -> bytes | EmbeddingError:
        """Return the encoded image once its header shows a size within the limits."""

        def claim(size_bytes: int) -> None:
            nonlocal held
            hold.resize(hold.units + size_bytes - held)
            held = size_bytes

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
