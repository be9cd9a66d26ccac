"""The Router's side of a tower: one call per chunk, a second try when a replica is lost."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from deployments.model.errors import EmbeddingError
from deployments.work import ImageChunk, ServiceError, TextChunk, TowerRows, TowerUnavailableError

logger = logging.getLogger("ray.serve")

LOST = (ActorDiedError, ActorUnavailableError)
MAX_TRIES = 2


class TowerClient:
    """Calls one tower through its handle."""

    def __init__(
        self, name: str, handle: DeploymentHandle[Any], on_retry: Callable[[str], None]
    ) -> None:
        self._name = name
        self._on_retry = on_retry
        self._handle = handle
        self._fingerprint: str | None = None

    async def embed(self, chunk: TextChunk | ImageChunk) -> TowerRows:
        """Return the rows of a chunk; embedding is idempotent, so a lost replica is tried again.

        Raises:
            TowerUnavailableError: a second replica was lost too, or none takes calls.
            ServiceError: the tower failed in a way that it should not.
        """
        for attempt in range(1, MAX_TRIES + 1):
            response = self._handle.embed.remote(chunk)
            try:
                rows: TowerRows = await response
                if attempt == MAX_TRIES or not _device_lost(rows):
                    return rows
            except asyncio.CancelledError:
                response.cancel()  # type: ignore[no-untyped-call]
                raise
            except Exception as error:
                if not (_lost(error) and attempt < MAX_TRIES):
                    raise self._translated(error) from error
            logger.warning("a %s replica was lost; sending its chunk again", self._name)
            self._on_retry(self._name)
        raise AssertionError("unreachable: the last try returns or raises")

    async def ready(self) -> None:
        """Return once a replica answers; notes its fingerprint."""
        self._fingerprint = str(await self._handle.ready.remote())

    async def fingerprint(self) -> str:
        """Return what a replica answers `ready` with: its weights and how it runs them.

        Raises:
            TowerUnavailableError: no replica answers.
        """
        if self._fingerprint is None:
            try:
                await self.ready()
            except Exception as error:
                raise self._translated(error) from error
        return self._fingerprint or ""

    def _translated(self, error: Exception) -> EmbeddingError:
        if isinstance(error, EmbeddingError):
            return error
        if _lost(error) or isinstance(error, BackPressureError):
            return TowerUnavailableError(f"the {self._name} tower cannot be reached; retry shortly")
        logger.error("the %s tower failed", self._name, exc_info=error)
        return ServiceError(f"the {self._name} tower failed; the reason is in the server's log")


def _device_lost(rows: TowerRows) -> bool:
    """Tell whether the replica still answers, but without its device."""
    return any(isinstance(error, TowerUnavailableError) for error in rows.failures.values())


def _lost(error: BaseException | None) -> bool:
    """Tell whether a replica died under a call, however Ray wraps that."""
    while error is not None:
        if isinstance(error, LOST):
            return True
        error = error.cause if isinstance(error, RayTaskError) else error.__cause__
    return False
