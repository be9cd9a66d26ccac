"""The batches of a Router: its routes, and the worker that runs beside its requests."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from starlette.applications import Starlette

from deployments.config import AppConfig
from deployments.routing.interactive import Interactive
from serve_app.batches.asking import ask
from serve_app.batches.folder import folder_of
from serve_app.batches.job import Answer, BatchJob
from serve_app.batches.objects import Batch
from serve_app.batches.routes import Routes
from serve_app.batches.worker import Worker

QUIET_S = 1.0  # after an interactive request; until then one line at a time is asked
MOST_WAIT_S = 0.1  # of such a line for a moment without interactive requests


class Batches:
    """What a Router does about batches; nothing where the configuration has no folder.

    Args:
        config: the application's configuration.
        interactive: gives the Router's interactive requests, once there is a Router.

    Raises:
        ServiceError: the folder cannot be written.
    """

    def __init__(self, config: AppConfig, interactive: Callable[[], Interactive]) -> None:
        self._config = config
        self._interactive = interactive
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
            key, interactive = app.state.keys.of(batch.owner), self._interactive()
            if not interactive.were_within(QUIET_S):
                return await ask(app, key, batch, body)
            async with one_by_one:
                await interactive.gap(MOST_WAIT_S)
                return await ask(app, key, batch, body)

        limits = self._config.router.max_body_bytes, self._config.batches.lines_under_way
        worker = Worker(self._folder, BatchJob(self._folder, asked, *limits))
        working = asyncio.create_task(worker.run(), name="batches")
        try:
            yield
        finally:
            working.cancel()
            with suppress(asyncio.CancelledError):
                await working
