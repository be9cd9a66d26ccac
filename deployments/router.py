"""The Router deployment: splits a request by modality, admits, cuts, fans out, merges, finishes.

It is the HTTP ingress (its routes are in serve_app.api.ingress) and the target of Python handles.
"""

import asyncio
import logging
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.config import AppConfig, TargetsConfig
from deployments.errors import (
    DeadlineError,
    FingerprintError,
    RequestError,
    ServiceError,
    TowerUnavailableError,
)
from deployments.messages import (
    Embeddings,
    ImageItem,
    Item,
    Lane,
    Terms,
    Timings,
    Usage,
    parse_item,
)
from deployments.metrics import RouterMetrics
from deployments.model.architecture import QUERY_TASK, Architecture
from deployments.model.errors import OptionError
from deployments.model.output import check_dimensions, finish
from deployments.model.weights.fingerprint import combine, preprocessing_digest
from deployments.model.weights.source import TOKENIZER_FILES, find
from deployments.routing.admission import Budget
from deployments.routing.dispatch import Merge, raise_first, together
from deployments.routing.modality import Work, image_modality, text_modality
from deployments.routing.preparation import TEXTS, Prepared, Preparer, timed

logger = logging.getLogger("ray.serve")

ANSWER_S = 5.0  # within which a tower says that it is there


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
        self.metrics = RouterMetrics()
        self._tokens = Budget("tokens", config.router.max_queued_tokens)
        self._pictures = Budget("images", config.router.max_queued_images)
        self._text = self._vision = None
        if text is not None:
            self._text = text_modality(text, self._tokens, config.router, self.metrics)
        if vision is not None:
            self._vision = image_modality(vision, self._pictures, config.router, self.metrics)
        self._preparer = Preparer(folder, self.architecture, config.images)
        self._targets = config.targets
        self._draining = False
        self._preprocessing = preprocessing_digest(folder, TOKENIZER_FILES)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new autoscaling targets; called by Ray Serve, restarts nothing."""
        self._targets = TargetsConfig.model_validate(user_config)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Report the work of this Router to the autoscaling policy."""
        self.metrics.outstanding(self._tokens.outstanding, self._pictures.outstanding)
        return {
            "text_tokens_outstanding": float(self._tokens.outstanding),
            "images_outstanding": float(self._pictures.outstanding),
            "text_tokens_arrived_total": float(self._tokens.arrived_total),
            "images_arrived_total": float(self._pictures.arrived_total),
            "cpu_s_total": time.process_time(),
            **{name: float(value) for name, value in self._targets.model_dump().items()},
        }

    async def drain(self) -> int:
        """Refuse requests from now on; return how many are still under way."""
        self._draining = True
        return self.metrics.under_way

    async def embed(
        self,
        items: Sequence[object],
        task: str | None = None,
        dimensions: int | None = None,
        normalized: bool = True,
        truncate: bool = False,
        lane: Lane = "interactive",
        timeout_s: float | None = None,
        partial: bool = False,
        fingerprint: str | None = None,
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
            partial: give the failures of single items in the answer instead of raising the first.
            fingerprint: refuse to answer with rows of another fingerprint.

        Raises:
            InputError: something the caller has to change; the message names the item.
            ServiceError: too much is outstanding, a tower is gone, or the time is up.
        """
        if self._draining:
            raise TowerUnavailableError("this service is stopping; send the request to another")
        timings = Timings()
        with self.metrics.request(lane) as tally:
            parsed = self._parse(items, task, dimensions)
            tally.items = len(parsed)
            limit_s = min(timeout_s or np.inf, self.config.router.timeout_s)
            try:
                async with asyncio.timeout(limit_s) as deadline:
                    if fingerprint is not None:
                        await self._check_fingerprint(parsed, fingerprint)
                    ready = await self._preparer.prepare(parsed, task, truncate, timings)
                    if not partial:
                        raise_first(ready.failures)
                    left_s = (deadline.when() or 0) - asyncio.get_running_loop().time()
                    terms = Terms(lane, max(left_s, 0))
                    merged = await self._compute(ready, len(parsed), terms, partial, timings)
                    served = await self.fingerprints(_towers(parsed))
            except TimeoutError:
                raise DeadlineError(f"not done within {limit_s:g} s; send less or retry") from None
            usage = Usage(sum(len(ids) for ids in ready.token_ids.values()), len(ready.images))
            tally.note(usage, ready.failures, timings)
        finished = finish(merged.rows, dimensions, normalized)
        answered_by = " ".join(f"{name}:{digest}" for name, digest in served.items())
        replicas = tuple(sorted(merged.replicas))
        return Embeddings(finished, usage, ready.failures, timings, answered_by, replicas)

    async def fingerprints(self, towers: Collection[str] = ("text", "vision")) -> dict[str, str]:
        """Return what the rows of each tower depend on besides the items, by tower.

        A tower that does not answer is left out.
        """
        modalities = {"text": self._text, "vision": self._vision}
        found = {}
        for name in sorted(towers):
            modality = modalities[name]
            if modality is not None:
                with suppress(ServiceError, TimeoutError):
                    async with asyncio.timeout(ANSWER_S):
                        told = await modality.client.fingerprint()
                        found[name] = combine(self._preprocessing, told)
        return found

    async def ready(self) -> bool:
        """Return whether requests are taken and every tower of the application answers."""
        if self._draining:
            return False
        towers = [tower for tower in (self._text, self._vision) if tower is not None]
        try:
            async with asyncio.timeout(ANSWER_S):
                await together([tower.client.ready() for tower in towers])
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
        if self._text is None and any(isinstance(item, TEXTS) for item in items):
            raise RequestError("this server embeds no texts: it runs without the text tower")
        if self._vision is None and any(isinstance(item, ImageItem) for item in items):
            raise RequestError("this server embeds no images: it runs without the vision tower")
        return items

    async def _check_fingerprint(self, items: list[Item], wanted: str) -> None:
        """Compare a fingerprint, `text:... vision:...`, for the towers that a request uses.

        Raises:
            FingerprintError: the caller wants another one than is served.
            RequestError: not of that form.
            TowerUnavailableError: a tower does not say which it has.
        """
        asked = dict(part.partition(":")[::2] for part in wanted.split())
        if not asked or not set(asked) <= {"text", "vision"}:
            raise RequestError("a fingerprint has the form 'text:... vision:...', or one of both")
        used = _towers(items) & set(asked)
        served = await self.fingerprints(used)
        for name in sorted(used):
            if name not in served:
                raise TowerUnavailableError(f"the {name} tower does not answer; retry shortly")
            if asked[name] != served[name]:
                raise FingerprintError(
                    f"the {name} fingerprint here is {served[name]}, not the one asked for: other "
                    "weights, precision, kernel or preprocessing"
                )

    async def _compute(
        self, ready: Prepared, num_items: int, terms: Terms, partial: bool, timings: Timings
    ) -> Merge:
        """Admit the request, ask both towers at once, and merge their rows."""
        failures = ready.failures if partial else None
        merge = Merge(num_items, self.architecture.width, failures, timings)
        with timed(timings, "towers_ms"), ExitStack() as stack:
            work: list[Work] = []
            if self._text and ready.token_ids:
                texts = await self._text.ask(ready.token_ids, merge, terms)
                work.append(stack.enter_context(self._text.admit(texts)))
            if self._vision and ready.images:
                images = await self._vision.ask(ready.images, merge, terms)
                work.append(stack.enter_context(self._vision.admit(images)))
            await together([embed() for embed in work])
        return merge


def _towers(items: Sequence[Item]) -> set[str]:
    """Return which towers a request uses."""
    return {"text" if isinstance(item, TEXTS) else "vision" for item in items}
