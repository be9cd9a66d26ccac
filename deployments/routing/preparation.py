"""Turns the items of a request into what the towers take: token ids and encoded pictures."""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deployments.config import ImageConfig
from deployments.images.sources import ImageSources
from deployments.messages import ImageItem, Item, TextItem, Timings, TokenItem
from deployments.model.architecture import Architecture
from deployments.model.errors import EmbeddingError
from deployments.model.pictures.image import open_image
from deployments.model.tokenizer import TextTokenizer, TokenIds

TEXTS = (TextItem, TokenItem)
SMALL_LENGTH = 1000  # characters that are tokenised in less time than a thread takes to begin


@dataclass(frozen=True)
class Prepared:
    """A request's tokenised texts, its pictures and the items that failed, by their places."""

    token_ids: dict[int, TokenIds]
    images: dict[int, bytes]
    failures: dict[int, EmbeddingError]


class Preparer:
    """Tokenises texts and gets pictures, off the event loop; one per Router.

    Args:
        folder: of the checkpoint's tokenizer.
        architecture: its sizes.
        config: where pictures may come from, and their limits.
    """

    def __init__(self, folder: Path, architecture: Architecture, config: ImageConfig) -> None:
        self._tokenizer = TextTokenizer(folder, architecture.text)
        self._images = ImageSources(config)
        self._max_pixels = config.max_pixels
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="router")

    async def prepare(
        self, items: Sequence[Item], task: str | None, truncate: bool, timings: Timings
    ) -> Prepared:
        """Return token ids, pictures and failures, each by its place in the request."""
        sources = {i: item.source for i, item in enumerate(items) if isinstance(item, ImageItem)}
        tokenised, fetched = await asyncio.gather(
            self._tokenise(items, task, truncate, timings),
            self._fetch_all(list(sources.values()), timings),
        )
        images = dict(zip(sources, fetched, strict=True))
        results: dict[int, TokenIds | bytes | EmbeddingError] = {**tokenised, **images}
        return Prepared(
            {i: x for i, x in tokenised.items() if not isinstance(x, EmbeddingError)},
            {i: x for i, x in images.items() if not isinstance(x, EmbeddingError)},
            {i: x for i, x in results.items() if isinstance(x, EmbeddingError)},
        )

    async def _tokenise(
        self, items: Sequence[Item], task: str | None, truncate: bool, timings: Timings
    ) -> Mapping[int, TokenIds | EmbeddingError]:
        texts = {i: item.text for i, item in enumerate(items) if isinstance(item, TextItem)}
        given = {i: x.token_ids for i, x in enumerate(items) if isinstance(x, TokenItem)}
        if not texts and not given:
            return {}

        def tokenise() -> dict[int, TokenIds | EmbeddingError]:
            options = task, None, truncate
            encoded = self._tokenizer.encode_each(list(texts.values()), *options)
            wrapped = self._tokenizer.wrap_each(list(given.values()), *options)
            return dict(zip([*texts, *given], [*encoded, *wrapped], strict=True))

        length = sum(map(len, [*texts.values(), *given.values()]))
        with timed(timings, "tokenise_ms"):
            if length <= SMALL_LENGTH:
                return tokenise()
            return await asyncio.get_running_loop().run_in_executor(self._threads, tokenise)

    async def _fetch_all(
        self, sources: list[bytes | str], timings: Timings
    ) -> list[bytes | EmbeddingError]:
        if not sources:
            return []
        with timed(timings, "fetch_ms"):
            return await asyncio.gather(*(self._fetch(source) for source in sources))

    async def _fetch(self, source: bytes | str) -> bytes | EmbeddingError:
        """Return the encoded picture once its header shows a size within the limits."""
        try:
            data = await self._images.read(source)
            await asyncio.get_running_loop().run_in_executor(
                self._threads, open_image, data, self._max_pixels
            )
        except EmbeddingError as error:
            return error
        return data


@contextmanager
def timed(timings: Timings, name: str) -> Iterator[None]:
    """Note how long the block takes, in milliseconds."""
    start_s = time.perf_counter()
    try:
        yield
    finally:
        setattr(timings, name, 1000 * (time.perf_counter() - start_s))
