"""The Router deployment: splits a request by modality, admits, cuts, fans out, merges, finishes.

It is the HTTP ingress (its routes are in serve_app.api.ingress) and the target of Python handles.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.config import AppConfig, TargetsConfig
from deployments.errors import (
    DeadlineError,
    RequestError,
    ServiceError,
    TowerUnavailableError,
)
from deployments.messages import (
    Classification,
    Embeddings,
    ImageItem,
    Item,
    Lane,
    Usage,
    parse_item,
)
from deployments.metrics import RouterMetrics
from deployments.model.architecture import Architecture
from deployments.model.output import finish
from deployments.model.tokenizer import Truncate
from deployments.model.weights.fingerprint import preprocessing_digest
from deployments.model.weights.source import TOKENIZER_FILES, find
from deployments.routing.admission import Budget
from deployments.routing.classification import Labels, LabelsInput, classified, with_labels
from deployments.routing.fingerprints import ANSWER_S, Fingerprints, refuse_others, wanted_by
from deployments.routing.interactive import Interactive
from deployments.routing.options import Options
from deployments.routing.parts import AnyTowerRequest, Parts
from deployments.routing.preparation import Preparer, sources_of
from deployments.routing.tolerance import Tolerance
from deployments.routing.tower_client import clients_of
from deployments.routing.tower_request import ImageRequest, TextRequest, together

logger = logging.getLogger("ray.serve")


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
        self.interactive = Interactive()
        limits = config.router
        self._tokens = Budget("tokens", limits.max_queued_tokens, limits.bulk_share)
        self._images = Budget("images", limits.max_queued_images, limits.bulk_share)
        self.bytes = Budget("bytes of memory", limits.max_queued_bytes, limits.bulk_share)
        self._clients = clients_of(config, self.metrics, text=text, vision=vision)
        sent_images = limits.max_chunks_in_flight * limits.max_images_per_chunk
        self._preparer = Preparer(folder, self.architecture, config.images, sent_images)
        self._targets = config.targets
        self._draining = False
        preprocessing = preprocessing_digest(folder, TOKENIZER_FILES)
        self._fingerprints = Fingerprints(preprocessing, self._clients)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new autoscaling targets; called by Ray Serve, restarts nothing."""
        self._targets = TargetsConfig.model_validate(user_config)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Report the work of this Router to the autoscaling policy."""
        tokens, images = self._tokens.outstanding, self._images.outstanding
        self.metrics.outstanding(tokens, images, self.bytes.outstanding)
        return {
            "text_tokens_outstanding": float(tokens),
            "images_outstanding": float(images),
            "text_tokens_arrived_total": float(self._tokens.arrived_total),
            "images_arrived_total": float(self._images.arrived_total),
            "cpu_s_total": time.process_time(),
            **{name: float(value) for name, value in self._targets.model_dump().items()},
        }

    async def check_health(self) -> None:
        """Hear which towers serve now, where rows of theirs are kept; called by Ray Serve.

        Without it the rows of a replaced tower would be served for as long as nobody asks for
        anything else. A tower that does not answer is no fault of this Router; one that sleeps is
        not woken.
        """
        kept = [client.name for client in self._clients.values() if len(client.cache)]
        await self._fingerprints.served(kept, anew=True)

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
        truncate: Truncate = False,
        lane: Lane = "interactive",
        timeout_s: float | None = None,
        partial: bool = False,
        fingerprint: str | None = None,
    ) -> Embeddings:
        """Embed a mixed list of texts and images; the rows come in its order.

        Args:
            items: `"text"`, `{"text": ...}`, `{"image": bytes, URL, data URI or base64}`.
            task: `"retrieval.query"` adds the query prefix to the texts.
            dimensions: width to truncate to before normalising.
            normalized: scale each row to length 1.
            truncate: cut texts over the token limit instead of refusing them, at their end or
                with `"start"` there.
            lane: `"bulk"` work fills what `"interactive"` leaves, with a share of its own.
            timeout_s: seconds until the caller stops waiting; at most the server's own limit.
            partial: give the failures of single items in the answer instead of raising the first.
            fingerprint: refuse to answer with rows of another fingerprint.

        Raises:
            InputError: something the caller has to change; the message names the item.
            ServiceError: too much is outstanding, a tower is gone, or the time is up.
        """
        options = Options(task, dimensions, normalized, truncate, lane, timeout_s, partial)
        answer, _ = await self._answer(items, options, fingerprint)
        return answer

    async def _answer(
        self,
        items: Sequence[object],
        options: Options,
        fingerprint: str | None,
        num_labels: int = 0,
    ) -> tuple[Embeddings, float]:
        """Embed items, of which the last may be labels; gives the scale of scores too."""
        if self._draining:
            raise TowerUnavailableError("this service is stopping; send the request to another")
        with self.metrics.refusals():
            options.check(self.architecture.width)
        with self.metrics.request(options.lane) as tally, self.interactive.request(options.lane):
            parsed = self._parse(items)
            tally.items = len(parsed)
            wanted = wanted_by(fingerprint, _towers(parsed))
            tolerance = Tolerance(options.partial, len(parsed) - num_labels)
            limit_s = options.limit_s(self.config.router.timeout_s)
            try:
                async with asyncio.timeout(limit_s) as deadline:
                    await self._fingerprints.check(wanted)
                    parts = await self._embed(parsed, options, deadline.when() or 0, tolerance)
                    answered_by = parts.made_by(self._fingerprints)
                    scale = 1.0
                    if options.logit_scale:
                        scale = await self._fingerprints.logit_scale(dict(answered_by)["text"])
            except TimeoutError:
                raise DeadlineError(f"not done within {limit_s:g} s; send less or retry") from None
            refuse_others(answered_by, wanted)  # a tower may have been replaced meanwhile
            if num_labels:
                parts.check_comparable()
            rows, failures = parts.merge(len(parsed), self.architecture.width)
            answer = Embeddings(
                finish(rows, options.dimensions, options.normalized),
                Usage(sum(map(len, parts.texts.items.values())), len(parts.images.items)),
                failures,
                parts.timings(),
                " ".join(f"{name}:{digest}" for name, digest in answered_by),
                tuple(sorted(x for request in parts.requests for x in request.replicas)),
            )
            tally.note(answer)
        return answer, scale

    async def classify(
        self,
        items: Sequence[object],
        labels: LabelsInput,
        logit_scale: bool = False,
        partial: bool = False,
        truncate: Truncate = False,
        lane: Lane = "interactive",
        timeout_s: float | None = None,
        fingerprint: str | None = None,
    ) -> Classification:
        """Score labels for a mixed list of texts and images; the rows come in its order.

        Args:
            items: as `embed` takes them, `router.max_classified_items` at most.
            labels: texts, or lists of them by the names of groups, each of which is a question.
            logit_scale: score by the model's trained temperature.
            partial: give the failures of single items in the answer; a label may not fail.
            truncate: as for `embed`.
            lane: as for `embed`.
            timeout_s: as for `embed`.
            fingerprint: as for `embed`.

        Raises:
            EmbeddingError: as `embed`; the message names the item or the label.
        """
        with self.metrics.refusals():
            most = self.config.router.max_classified_items
            read = Labels.read(labels, most)
            both = with_labels(items, read, most)
        options = Options(None, None, True, truncate, lane, timeout_s, partial, logit_scale)
        answer, scale = await self._answer(both, options, fingerprint, len(read.texts))
        return classified(answer, read, scale)

    async def fingerprints(self) -> dict[str, str]:
        """Return what the rows of each tower depend on besides the items, by tower.

        A tower that does not answer is left out.
        """
        return await self._fingerprints.served()

    async def ready(self) -> bool:
        """Return whether requests will be answered: every tower does, or sleeps as it may.

        A tower without replicas is ready where its least number is 0; asking wakes none.
        """
        if self._draining:
            return False
        try:
            async with asyncio.timeout(ANSWER_S):
                await together([client.ready() for client in self._clients.values()])
        except (ServiceError, TimeoutError, RayError, RayServeException) as error:
            logger.warning("not ready: %r", error)
            return False
        return True

    def _parse(self, values: Sequence[object]) -> list[Item]:
        """Refuse what can be refused before any work is done."""
        if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
            raise RequestError(f"items must be a list, not {type(values).__name__}")
        if not values:
            raise RequestError("the list of items is empty; send at least one")
        limit = self.config.router.max_items_per_request
        if len(values) > limit:
            raise RequestError(f"{len(values):,} items; the limit is {limit:,} in one request")
        items = [parse_item(index, value) for index, value in enumerate(values)]
        for name in _towers(items) - self._clients.keys():
            kind = "texts" if name == "text" else "images"
            raise RequestError(f"this server embeds no {kind}: it runs without the {name} tower")
        return items

    async def _embed(
        self, items: Sequence[Item], options: Options, deadline_s: float, tolerance: Tolerance
    ) -> Parts:
        """Admit the request as a whole before an image is fetched, then ask both towers at once."""
        lane = options.lane
        asked = lane, deadline_s, self.config.router, self.architecture.width, tolerance
        requests: list[AnyTowerRequest] = []
        with (
            self._tokens.hold(lane) as tokens,
            self._images.hold(lane) as images,
            self.bytes.hold(lane) as image_bytes,
        ):
            texts = await self._preparer.tokenise(items, options.task, options.truncate)
            tolerance.check(texts.failures)
            if texts.items:
                requests.append(TextRequest(self._clients["text"], texts.items, tokens, *asked))
                await requests[0].admit()
            sources = sources_of(items)
            images.resize(len(sources))
            fetched = await self._preparer.fetch(sources, image_bytes)
            tolerance.check(fetched.failures)
            if fetched.items:
                client = self._clients["vision"]
                requests.append(ImageRequest(client, fetched.items, images, *asked))
                await requests[-1].admit()  # gives back what is the same, or could not be had
            start_s = time.perf_counter()
            await together([request.run() for request in requests])
        return Parts(texts, fetched, requests, 1000 * (time.perf_counter() - start_s))


def _towers(items: Sequence[Item]) -> set[str]:
    """Return which towers a request uses."""
    return {"vision" if isinstance(item, ImageItem) else "text" for item in items}
