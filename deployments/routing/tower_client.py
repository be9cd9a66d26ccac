"""The Router's side of a tower: small chunks together, a second try when a replica is lost."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from deployments.errors import ServiceError, TowerUnavailableError
from deployments.messages import ImageChunk, TextChunk, TowerAnswers, TowerRows
from deployments.model.errors import EmbeddingError
from deployments.routing.coalescing import Coalescer

logger = logging.getLogger("ray.serve")

LOST = (ActorDiedError, ActorUnavailableError)
MAX_TRIES = 2
QUERY_SHARE = 1 / 64  # of a full chunk
FRESH_S = 10.0  # for which a tower is taken to be the one that answered last

Chunk = TextChunk | ImageChunk
Answer = tuple[TowerRows, str]  # rows, and the fingerprint of the replica that made them


class TowerClient:
    """Calls one tower through its handle."""

    def __init__(
        self, name: str, handle: DeploymentHandle[Any], on_retry: Callable[[str], None]
    ) -> None:
        self._name = name
        self._on_retry = on_retry
        self._handle = handle
        self._fingerprint: str | None = None
        self._heard_s = -FRESH_S
        # An answer comes once every part of its call has one, so lanes do not mix, nor do queries
        # and documents.
        self._lanes: dict[str, Coalescer[Chunk, Answer]] = {
            lane: Coalescer(self._call) for lane in ("query", "interactive", "bulk")
        }

    async def embed(self, chunk: Chunk, share: float) -> Answer:
        """Return the rows of a chunk that takes a share of a full one, and their fingerprint.

        Embedding is idempotent, so what a lost replica held is sent again.

        Raises:
            TowerUnavailableError: a second replica was lost too, or none takes calls.
            DeadlineError: the chunk's time ran out.
            ServiceError: the tower failed in a way that it should not.
        """
        lane = chunk.terms.lane
        is_query = lane == "interactive" and share <= QUERY_SHARE
        return await self._lanes["query" if is_query else lane].embed(chunk, share)

    async def ready(self) -> None:
        """Return once a replica answers; notes its fingerprint."""
        self._note(str(await self._handle.ready.remote()))

    async def fingerprint(self) -> str:
        """Return what a replica answered last: its weights and how it runs them.

        Raises:
            TowerUnavailableError: no replica answers.
        """
        if self._fingerprint is None:
            try:
                await self.ready()
            except Exception as error:
                raise self._translated(error) from error
        return self._fingerprint or ""

    @property
    def fresh_fingerprint(self) -> str | None:
        """The fingerprint if a replica answered within the last seconds, else None."""
        return self._fingerprint if time.monotonic() < self._heard_s + FRESH_S else None

    async def _call(self, chunks: Sequence[Chunk]) -> list[Answer | EmbeddingError]:
        """Send chunks in one call, and once more if its replica is lost."""
        for attempt in range(1, MAX_TRIES + 1):
            response = self._handle.embed.remote(tuple(chunks))
            try:
                answers: TowerAnswers = await response
                if attempt == MAX_TRIES or not any(map(_device_lost, answers.parts)):
                    self._note(answers.fingerprint)
                    return [
                        part if isinstance(part, EmbeddingError) else (part, answers.fingerprint)
                        for part in answers.parts
                    ]
            except asyncio.CancelledError:
                response.cancel()  # type: ignore[no-untyped-call]
                raise
            except Exception as error:
                if not (_lost(error) and attempt < MAX_TRIES):
                    raise self._translated(error) from error
            logger.warning("a %s replica was lost; sending its chunks again", self._name)
            self._on_retry(self._name)
        raise AssertionError("unreachable: the last try returns or raises")

    def _note(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self._heard_s = time.monotonic()

    def _translated(self, error: Exception) -> EmbeddingError:
        if isinstance(error, EmbeddingError):
            return error
        if _lost(error) or isinstance(error, BackPressureError):
            return TowerUnavailableError(f"the {self._name} tower cannot be reached; retry shortly")
        logger.error("the %s tower failed", self._name, exc_info=error)
        return ServiceError(f"the {self._name} tower failed; the reason is in the server's log")


def _device_lost(part: TowerRows | EmbeddingError) -> bool:
    """Tell whether the replica still answers, but without its device."""
    failures = part.failures.values() if isinstance(part, TowerRows) else (part,)
    return any(isinstance(error, TowerUnavailableError) for error in failures)


def _lost(error: BaseException | None) -> bool:
    """Tell whether a replica died under a call, however Ray wraps that."""
    while error is not None:
        if isinstance(error, LOST):
            return True
        error = error.cause if isinstance(error, RayTaskError) else error.__cause__
    return False
