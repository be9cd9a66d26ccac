"""The batches of a Router: its routes, and the worker that runs beside its requests."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext, suppress

from starlette.applications import Starlette

from deployments.config import AppConfig
from serve_app.batches.asking import ask
from serve_app.batches.folder import folder_of
from serve_app.batches.job import Answer, BatchJob
from serve_app.batches.objects import Batch
from serve_app.batches.routes import Routes
from serve_app.batches.worker import Worker

QUIET_S = 1.0  # after an interactive request; until then one line at a time is asked


class Batches:
    """What a Router does about batches; nothing where the configuration has no folder.

    Args:
        config: the application's configuration.
        interactive_s: tells when the last interactive request came in, by `time.perf_counter`.

    Raises:
        ServiceError: the folder cannot be written.
    """

    def __init__(self, config: AppConfig, interactive_s: Callable[[], float]) -> None:
        self._config = config
        self._interactive_s = interactive_s
        self._folder = folder_of(config)
        self.routes = Routes(self._folder, config.batches)

    @asynccontextmanager
    async def working(self, app: Starlette) -> AsyncIterator[None]:
        """Work batches off while the application runs."""
        if self._folder is None:
            yield
            return

        one_by_one = asyncio.Lock()

        async def asked(batch: Batch, body: bytes) -> Answer:
            quiet = time.perf_counter() - self._interactive_s() > QUIET_S
            async with nullcontext() if quiet else one_by_one:
                return await ask(app, app.state.keys.of(batch.owner), batch, body)

        limits = self._config.router.max_body_bytes, self._config.batches.lines_under_way
        worker = Worker(self._folder, BatchJob(self._folder, asked, *limits))
        working = asyncio.create_task(worker.run(), name="batches")
        try:
            yield
        finally:
            working.cancel()
            with suppress(asyncio.CancelledError):
                await working
