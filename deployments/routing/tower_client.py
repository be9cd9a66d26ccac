"""The Router's side of a tower: small chunks together, a second try when a replica is lost."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, get_args

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from deployments.config import AppConfig
from deployments.errors import ServiceError, TowerUnavailableError
from deployments.messages import ImageChunk, Lane, TextChunk, TowerRows
from deployments.metrics import RouterMetrics
from deployments.model.errors import EmbeddingError
from deployments.routing.cache import RowCache
from deployments.routing.coalescing import Coalescer
from deployments.routing.sleep import Sleep

logger = logging.getLogger("ray.serve")

LOST = (ActorDiedError, ActorUnavailableError)
NOT_NOW = (BackPressureError, DeploymentUnavailableError)  # too much is asked, or none starts
MAX_TRIES = 2
SMALL_SHARE = 1 / 8  # of a full chunk

Chunk = TextChunk | ImageChunk


class TowerClient:
    """Calls one tower through its handle.

    Args:
        name: `text` or `vision`.
        handle: of the tower's deployment.
        cache: of rows; told of the fingerprint in every answer.
        metrics: where retries and reuse are counted.
        sleep: it may have no replica where there is nothing to do; a request wakes it.
    """

    def __init__(
        self,
        name: str,
        handle: DeploymentHandle[Any],
        cache: RowCache,
        metrics: RouterMetrics,
        sleep: Sleep,
    ) -> None:
        self.name = name
        self.cache = cache
        self.metrics = metrics
        self._handle = handle
        self._sleep = sleep
        # An answer comes once every part of its call has one: queries do not travel with documents,
        # nor one lane with the other.
        self._coalescers: dict[tuple[Lane, bool], Coalescer[Chunk, TowerRows]] = {
            (lane, is_small): Coalescer(self._call, _device_s)
            for lane in get_args(Lane)
            for is_small in (True, False)
        }

    async def embed(self, chunk: Chunk, share: float) -> TowerRows:
        """Return the rows of a chunk that takes a share of a full one.

        Embedding is idempotent, so what a lost replica held is sent again.

        Raises:
            TowerUnavailableError: a second replica was lost too, or none takes calls.
            DeadlineError: the chunk's time ran out.
            ServiceError: the tower failed in a way that it should not.
        """
        kind = chunk.terms.lane, share <= SMALL_SHARE
        return await self._coalescers[kind].embed(chunk, share)

    async def ready(self, wake: bool = False) -> None:
        """Return once a replica answers, or at once where the tower sleeps; notes its fingerprint.

        Args:
            wake: have a sleeping tower start a replica, and wait for it.
        """
        if not wake and self._sleep.may_sleep and (await self._look() or not self._sleep.fails):
            return
        self._heard(str(await self._handle.ready.remote()))

    async def awake(self) -> None:
        """Return where a request is taken, now or when the tower has woken.

        Raises:
            TowerUnavailableError: it sleeps, and who finds it so is refused; says when to come
                back.
        """
        if not self._sleep.refuses or self._sleep.is_awake or await self._look():
            return
        self._sleep.asked()
        left_s = self._sleep.left_s
        raise TowerUnavailableError(
            f"the {self.name} tower sleeps, and is woken now; retry in {left_s:.0f} s", left_s
        )

    async def _look(self) -> bool:
        """Return whether a replica answers, without starting one."""
        with suppress(DeploymentUnavailableError):  # no replica: a broadcast starts none
            told = await self._handle.broadcast("ready").results_async()
            self._heard(str(told[0]))
            return True
        return False

    def _heard(self, fingerprint: str) -> None:
        self._sleep.heard()
        self.cache.heard(fingerprint)

    async def fingerprint(self, anew: bool = False, wake: bool = False) -> str:
        """Return what a replica answered last: its weights and how it runs them.

        Args:
            anew: ask one now.
            wake: see `ready`.

        Raises:
            TowerUnavailableError: no replica answers, or the tower sleeps and was never heard.
        """
        if anew or self.cache.fingerprint is None:
            try:
                await self.ready(wake)
            except Exception as error:
                raise self._translated(error) from error
        if self.cache.fingerprint is None:
            raise TowerUnavailableError(f"the {self.name} tower sleeps; a request wakes it")
        return self.cache.fingerprint

    async def logit_scale(self) -> tuple[str, float]:
        """Return what a replica of the text tower says: its fingerprint, its trained scale.

        Raises:
            TowerUnavailableError: no replica answers.
        """
        try:
            told, scale = await self._handle.logit_scale.remote()
        except Exception as error:
            raise self._translated(error) from error
        return str(told), float(scale)

    async def _call(self, chunks: Sequence[Chunk]) -> Sequence[TowerRows | EmbeddingError]:
        """Send chunks in one call, and once more if its replica is lost."""
        self._sleep.asked()
        for attempt in range(1, MAX_TRIES + 1):
            response = self._handle.embed.remote(tuple(chunks))
            try:
                answers: tuple[TowerRows | EmbeddingError, ...] = await response
                if attempt == MAX_TRIES or not any(map(_device_lost, answers)):
                    for rows in answers:
                        if isinstance(rows, TowerRows):
                            self._heard(rows.fingerprint)
                    return answers
            except asyncio.CancelledError:
                response.cancel()  # type: ignore[no-untyped-call]
                raise
            except Exception as error:
                if not (_lost(error) and attempt < MAX_TRIES):
                    raise self._translated(error) from error
            logger.warning("a %s replica was lost; sending its chunks again", self.name)
            self.metrics.retry(self.name)
        raise AssertionError("unreachable: the last try returns or raises")

    def _translated(self, error: Exception) -> EmbeddingError:
        if isinstance(error, EmbeddingError):
            return error
        if _lost(error) or isinstance(error, NOT_NOW):
            return TowerUnavailableError(f"the {self.name} tower cannot be reached; retry shortly")
        logger.error("the %s tower failed", self.name, exc_info=error)
        return ServiceError(f"the {self.name} tower failed; the reason is in the server's log")


def clients_of(
    config: AppConfig, metrics: RouterMetrics, **handles: DeploymentHandle[Any] | None
) -> dict[str, TowerClient]:
    """Return a client for each tower that the application has, by its name."""
    towers = {"text": config.text, "vision": config.vision}
    # What many callers ask for again and again are texts.
    caches = {"text": RowCache(config.router.cache_bytes), "vision": RowCache(0)}
    asked = config.router.asleep, config.policy.startup_s
    return {
        name: TowerClient(name, handle, caches[name], metrics, Sleep(towers[name], *asked))
        for name, handle in handles.items()
        if handle is not None
    }


def _device_s(answer: TowerRows) -> float:
    return answer.device_ms / 1e3


def _device_lost(answer: TowerRows | EmbeddingError) -> bool:
    """Tell whether the replica still answers, but without its device."""
    failures = answer.failures.values() if isinstance(answer, TowerRows) else (answer,)
    return any(isinstance(error, TowerUnavailableError) for error in failures)


def _lost(error: BaseException | None) -> bool:
    """Tell whether a replica died under a call, however Ray wraps that."""
    while error is not None:
        if isinstance(error, LOST):
            return True
        error = error.cause if isinstance(error, RayTaskError) else error.__cause__
    return False
