"""Turns the items of a request into what the towers take: token ids and encoded images."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from deployments.config import ImageConfig
from deployments.images.sources import ImageSources
from deployments.messages import ImageItem, Item, TextItem, TokenItem
from deployments.model.architecture import Architecture
from deployments.model.errors import EmbeddingError
from deployments.model.pictures.image import open_image
from deployments.model.tokenizer import TextTokenizer, TokenIds, Truncate

SMALL_LENGTH = 1000  # characters that are tokenised in less time than a thread takes to begin

Tokenised = dict[int, TokenIds | EmbeddingError]
Fetched = dict[int, bytes | EmbeddingError]


@dataclass(frozen=True)
class Prepared:
    """What becomes of a request's items.

    Attributes:
        token_ids, images: what the towers take, by index in the request.
        failures: of the items that cannot be had, by index in the request.
        tokenise_ms, fetch_ms: how long it took; 0 where there was none to do.
    """

    token_ids: dict[int, TokenIds]
    images: dict[int, bytes]
    failures: dict[int, EmbeddingError]
    tokenise_ms: float
    fetch_ms: float


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
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="router")

    async def prepare(
        self, items: Sequence[Item], task: str | None, truncate: Truncate
    ) -> Prepared:
        """Tokenise the texts and fetch the images at the same time; an item's failure is its own.

        Raises:
            OptionError: the model has no such task.
        """
        (tokenised, tokenise_ms), (fetched, fetch_ms) = await asyncio.gather(
            self._tokenise(items, task, truncate), self._fetch_all(items)
        )
        return Prepared(
            {i: x for i, x in tokenised.items() if not isinstance(x, EmbeddingError)},
            {i: x for i, x in fetched.items() if not isinstance(x, EmbeddingError)},
            {i: x for i, x in (tokenised | fetched).items() if isinstance(x, EmbeddingError)},
            tokenise_ms,
            fetch_ms,
        )

    async def _tokenise(
        self, items: Sequence[Item], task: str | None, truncate: Truncate
    ) -> tuple[Tokenised, float]:
        """Return token ids or failures, and the milliseconds taken."""
        texts = {i: item.text for i, item in enumerate(items) if isinstance(item, TextItem)}
        given = {i: x.token_ids for i, x in enumerate(items) if isinstance(x, TokenItem)}
        if not texts and not given:
            return {}, 0.0

        def tokenise() -> Tokenised:
            options = task, None, truncate
            encoded = self._tokenizer.encode_each(list(texts.values()), *options)
            wrapped = self._tokenizer.wrap_each(list(given.values()), *options)
            return dict(zip([*texts, *given], [*encoded, *wrapped], strict=True))

        start_s = time.perf_counter()
        if sum(map(len, [*texts.values(), *given.values()])) <= SMALL_LENGTH:
            tokenised = tokenise()
        else:
            loop = asyncio.get_running_loop()
            tokenised = await loop.run_in_executor(self._threads, tokenise)
        return tokenised, 1000 * (time.perf_counter() - start_s)

    async def _fetch_all(self, items: Sequence[Item]) -> tuple[Fetched, float]:
        """Return encoded images or failures, and the milliseconds taken."""
        sources = {i: item.source for i, item in enumerate(items) if isinstance(item, ImageItem)}
        if not sources:
            return {}, 0.0
        start_s = time.perf_counter()
        fetched = await asyncio.gather(*map(self._fetch, sources.values()))
        return dict(zip(sources, fetched, strict=True)), 1000 * (time.perf_counter() - start_s)

    async def _fetch(self, source: bytes | str) -> bytes | EmbeddingError:
        """Return the encoded image once its header shows a size within the limits."""
        try:
            data = await self._images.read(source)
            await asyncio.get_running_loop().run_in_executor(
                self._threads, open_image, data, self._max_pixels
            )
        except EmbeddingError as error:
            return error
        return data
