"""The Router deployment: splits a request by modality, cuts it, fans out, merges, finishes.

It is the HTTP ingress (its routes are in serve_app.ingress) and the target of Python handles.
"""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.config import AppConfig
from deployments.images import ImageSources
from deployments.model.architecture import QUERY_TASK, Architecture
from deployments.model.errors import EmbeddingError, OptionError
from deployments.model.image import open_image
from deployments.model.output import Rows, check_dimensions, finish
from deployments.model.source import TOKENIZER_FILES, find
from deployments.model.tokenizer import TextTokenizer, TokenIds
from deployments.tower_client import TowerClient
from deployments.work import (
    DeadlineError,
    Embeddings,
    ImageChunk,
    ImageItem,
    Item,
    RequestError,
    ServiceError,
    TextChunk,
    TextItem,
    Usage,
    cut,
    parse_item,
)

logger = logging.getLogger("ray.serve")

T = TypeVar("T")


class Router:
    """Answers requests for embeddings; runs as the Ray Serve deployment `Router`.

    Args:
        config: the application's configuration.
        text: handle of the TextTower, None where the application has none.
        vision: handle of the VisionTower, None where the application has none.
    """

    def __init__(
        self,
        config: AppConfig,
        text: DeploymentHandle[Any] | None = None,
        vision: DeploymentHandle[Any] | None = None,
    ) -> None:
        self.config = config
        folder = find(config.model.source, config.model.revision, TOKENIZER_FILES)
        self.architecture = Architecture.read(folder)
        self._text = TowerClient("text", text) if text is not None else None
        self._vision = TowerClient("vision", vision) if vision is not None else None
        self._tokenizer = TextTokenizer(folder, self.architecture.text)
        self._images = ImageSources(config.images)
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="router")

    async def embed(
        self,
        items: Sequence[object],
        task: str | None = None,
        dimensions: int | None = None,
        normalized: bool = True,
        truncate: bool = False,
    ) -> Embeddings:
        """Embed a mixed list of texts and pictures; the rows come in its order.

        Args:
            items: `"text"`, `{"text": ...}`, `{"image": bytes, URL, data URI or base64}`.
            task: `"retrieval.query"` adds the query prefix to the texts.
            dimensions: width to truncate to before normalising.
            normalized: scale each row to length 1.
            truncate: cut texts over the token limit instead of refusing them.

        Raises:
            InputError: something the caller has to change; the message names the item.
            ServiceError: a tower is gone, or the time is up.
        """
        parsed = self._parse(items, task, dimensions)
        limit_s = self.config.router.timeout_s
        try:
            async with asyncio.timeout(limit_s):
                rows, usage = await self._embed(parsed, task, truncate)
        except TimeoutError:
            raise DeadlineError(f"not done within {limit_s:g} s; send less or retry") from None
        return Embeddings(finish(rows, dimensions, normalized), usage)

    async def ready(self) -> bool:
        """Return whether every tower of the application answers."""
        towers = [tower for tower in (self._text, self._vision) if tower is not None]
        try:
            async with asyncio.timeout(5):
                await _all(*(tower.ready() for tower in towers))
        except (ServiceError, TimeoutError, RayError, RayServeException) as error:
            logger.warning("not ready: %r", error)
            return False
        return True

    def _parse(
        self, values: Sequence[object], task: str | None, dimensions: int | None
    ) -> list[Item]:
        """Refuse what can be refused before any work is done."""
        if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
            raise RequestError(f"items must be a list, not {type(values).__name__}")
        if not values:
            raise RequestError("the list of items is empty; send at least one")
        limit = self.config.router.max_items_per_request
        if len(values) > limit:
            raise RequestError(f"{len(values):,} items; the limit is {limit:,} in one request")
        if task not in (None, QUERY_TASK):
            raise OptionError(f"task is {task!r}; choose {QUERY_TASK!r} or leave it out")
        check_dimensions(dimensions, self.architecture.width)
        items = [parse_item(index, value) for index, value in enumerate(values)]
        if self._text is None and any(isinstance(item, TextItem) for item in items):
            raise RequestError("this server embeds no texts: it runs without the text tower")
        if self._vision is None and any(isinstance(item, ImageItem) for item in items):
            raise RequestError("this server embeds no images: it runs without the vision tower")
        return items

    async def _embed(
        self, items: list[Item], task: str | None, truncate: bool
    ) -> tuple[Rows, Usage]:
        """Tokenise and fetch, send all chunks to both towers at once, merge their rows."""
        texts = {i: item.text for i, item in enumerate(items) if isinstance(item, TextItem)}
        sources = {i: item.source for i, item in enumerate(items) if isinstance(item, ImageItem)}
        tokenised, fetched = await asyncio.gather(
            self._tokenise(list(texts.values()), task, truncate),
            asyncio.gather(*(self._fetch(source) for source in sources.values())),
        )
        token_ids = _all_good(dict(zip(texts, tokenised, strict=True)))
        images = _all_good(dict(zip(sources, fetched, strict=True)))
        rows = np.empty((len(items), self.architecture.width), dtype=np.float32)
        await _all(*self._text_calls(token_ids, rows), *self._image_calls(images, rows))
        return rows, Usage(sum(len(ids) for ids in token_ids.values()), len(images))

    async def _tokenise(
        self, texts: list[str], task: str | None, truncate: bool
    ) -> Sequence[TokenIds | EmbeddingError]:
        if not texts:
            return []
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, self._tokenizer.encode_each, texts, task, None, truncate
        )

    async def _fetch(self, source: bytes | str) -> bytes | EmbeddingError:
        """Return the encoded picture once its header shows a size within the limits."""
        try:
            data = await self._images.read(source)
            limit = self.config.images.max_pixels
            await asyncio.get_running_loop().run_in_executor(self._threads, open_image, data, limit)
        except EmbeddingError as error:
            return error
        return data

    def _text_calls(
        self, token_ids: dict[int, TokenIds], rows: Rows
    ) -> list[Coroutine[Any, Any, None]]:
        costs = [len(ids) for ids in token_ids.values()]
        texts, places = list(token_ids.values()), list(token_ids)
        return [
            _fill(self._text, TextChunk.of(texts[part]), places[part], rows)
            for part in cut(costs, self.config.router.max_tokens_per_chunk)
        ]

    def _image_calls(self, images: dict[int, bytes], rows: Rows) -> list[Coroutine[Any, Any, None]]:
        router = self.config.router
        # Share of a chunk that a picture takes, by count or by bytes, whichever is more.
        costs = [
            max(1 / router.max_images_per_chunk, len(data) / router.max_chunk_bytes)
            for data in images.values()
        ]
        data, places = list(images.values()), list(images)
        return [
            _fill(self._vision, ImageChunk(tuple(data[part])), places[part], rows)
            for part in cut(costs, 1)
        ]


async def _fill(
    tower: TowerClient | None, chunk: TextChunk | ImageChunk, places: list[int], rows: Rows
) -> None:
    """Embed a chunk and put its rows in their places of the request."""
    assert tower is not None  # _parse refused the item otherwise
    answer = await tower.embed(chunk)
    _raise_first({places[i]: error for i, error in answer.failures.items()})
    rows[places] = answer.rows


def _all_good(results: dict[int, T | EmbeddingError]) -> dict[int, T]:
    """Return the results if none is an error, otherwise raise the first with its item's index."""
    _raise_first({i: x for i, x in results.items() if isinstance(x, EmbeddingError)})
    return {i: x for i, x in results.items() if not isinstance(x, EmbeddingError)}


def _raise_first(failures: dict[int, EmbeddingError]) -> None:
    """Raise the failure of the first failed item, with its index."""
    for index in sorted(failures):
        error = failures[index]
        raise type(error)(f"item {index}: {error}") from error


async def _all(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run coroutines at once; the first error cancels the others and is raised itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in coroutines:
                group.create_task(coroutine)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
