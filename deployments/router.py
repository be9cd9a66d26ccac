"""The Router deployment: splits a request by modality, admits, cuts, fans out, merges, finishes.

It is the HTTP ingress (its routes are in serve_app.ingress) and the target of Python handles.
"""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.admission import Budget
from deployments.config import AppConfig, TargetsConfig
from deployments.dispatch import fan_out, image_pieces, raise_first, text_pieces, together
from deployments.images import ImageSources
from deployments.model.architecture import QUERY_TASK, Architecture
from deployments.model.errors import EmbeddingError, OptionError
from deployments.model.image import open_image
from deployments.model.output import Rows, check_dimensions, finish
from deployments.model.source import TOKENIZER_FILES, find
from deployments.model.tokenizer import TextTokenizer, TokenIds
from deployments.queueing import Lane
from deployments.tower_client import TowerClient
from deployments.work import (
    DeadlineError,
    Embeddings,
    ImageItem,
    Item,
    RequestError,
    ServiceError,
    Terms,
    TextItem,
    Usage,
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
        self._tokens = Budget("tokens", config.router.max_queued_tokens)
        self._pictures = Budget("images", config.router.max_queued_images)
        self._tokenizer = TextTokenizer(folder, self.architecture.text)
        self._images = ImageSources(config.images)
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="router")
        self._targets = config.targets

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new autoscaling targets; called by Ray Serve, restarts nothing."""
        self._targets = TargetsConfig.model_validate(user_config)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Report the work of this Router to the autoscaling policy."""
        return {
            "text_tokens_outstanding": float(self._tokens.outstanding),
            "images_outstanding": float(self._pictures.outstanding),
            "text_tokens_arrived_total": float(self._tokens.arrived_total),
            "images_arrived_total": float(self._pictures.arrived_total),
            **{name: float(value) for name, value in self._targets.model_dump().items()},
        }

    async def embed(
        self,
        items: Sequence[object],
        task: str | None = None,
        dimensions: int | None = None,
        normalized: bool = True,
        truncate: bool = False,
        lane: Lane = "interactive",
        timeout_s: float | None = None,
    ) -> Embeddings:
        """Embed a mixed list of texts and pictures; the rows come in its order.

        Args:
            items: `"text"`, `{"text": ...}`, `{"image": bytes, URL, data URI or base64}`.
            task: `"retrieval.query"` adds the query prefix to the texts.
            dimensions: width to truncate to before normalising.
            normalized: scale each row to length 1.
            truncate: cut texts over the token limit instead of refusing them.
            lane: `"bulk"` work fills what `"interactive"` leaves, with a share of its own.
            timeout_s: seconds until the caller stops waiting; at most the server's own limit.

        Raises:
            InputError: something the caller has to change; the message names the item.
            ServiceError: too much is outstanding, a tower is gone, or the time is up.
        """
        parsed = self._parse(items, task, dimensions)
        limit_s = min(timeout_s or np.inf, self.config.router.timeout_s)
        try:
            async with asyncio.timeout(limit_s) as deadline:
                token_ids, images = await self._prepare(parsed, task, truncate)
                left_s = (deadline.when() or 0) - asyncio.get_running_loop().time()
                rows = await self._compute(token_ids, images, Terms(lane, max(left_s, 0)))
        except TimeoutError:
            raise DeadlineError(f"not done within {limit_s:g} s; send less or retry") from None
        usage = Usage(sum(len(ids) for ids in token_ids.values()), len(images))
        return Embeddings(finish(rows, dimensions, normalized), usage)

    async def ready(self) -> bool:
        """Return whether every tower of the application answers."""
        towers = [tower for tower in (self._text, self._vision) if tower is not None]
        try:
            async with asyncio.timeout(5):
                await together([tower.ready() for tower in towers])
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

    async def _prepare(
        self, items: list[Item], task: str | None, truncate: bool
    ) -> tuple[dict[int, TokenIds], dict[int, bytes]]:
        """Tokenise texts and get pictures; both by their place in the request."""
        texts = {i: item.text for i, item in enumerate(items) if isinstance(item, TextItem)}
        sources = {i: item.source for i, item in enumerate(items) if isinstance(item, ImageItem)}
        tokenised, fetched = await asyncio.gather(
            self._tokenise(list(texts.values()), task, truncate),
            asyncio.gather(*(self._fetch(source) for source in sources.values())),
        )
        token_ids = dict(zip(texts, tokenised, strict=True))
        images = dict(zip(sources, fetched, strict=True))
        return _all_good(token_ids), _all_good(images)

    async def _compute(
        self, token_ids: dict[int, TokenIds], images: dict[int, bytes], terms: Terms
    ) -> Rows:
        """Admit the request, send its pieces to both towers at once, and merge their rows."""
        limits = self.config.router
        rows = np.empty((len(token_ids) + len(images), self.architecture.width), np.float32)
        tokens = sum(len(ids) for ids in token_ids.values())
        with self._tokens.admit(tokens) as text, self._pictures.admit(len(images)) as vision:
            work = []
            if self._text and token_ids:
                pieces = text_pieces(token_ids, terms, limits)
                work.append(fan_out(self._text, pieces, rows, text, limits.max_chunks_in_flight))
            if self._vision and images:
                pieces = image_pieces(images, terms, limits)
                work.append(
                    fan_out(self._vision, pieces, rows, vision, limits.max_chunks_in_flight)
                )
            await together(work)
        return rows

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
            max_pixels = self.config.images.max_pixels
            await asyncio.get_running_loop().run_in_executor(
                self._threads, open_image, data, max_pixels
            )
        except EmbeddingError as error:
            return error
        return data


def _all_good(results: dict[int, T | EmbeddingError]) -> dict[int, T]:
    """Return the results if none is an error, otherwise raise the first with its item's index."""
    raise_first({i: x for i, x in results.items() if isinstance(x, EmbeddingError)})
    return {i: x for i, x in results.items() if not isinstance(x, EmbeddingError)}
