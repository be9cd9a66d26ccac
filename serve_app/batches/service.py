"""The batches of a Router: its routes, and the worker that runs beside its requests."""

import asyncio
import time
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

QUIET_S = 1.0  # after an interactive request; until then lines are asked as `Turns` says
REST = 2.0  # times the last line's own time
MOST_WAIT_S = 0.1  # of a line's rest, and of its wait for a moment without interactive requests


class Turns:
    """When a line is asked: at once, or beside interactive requests one at a time and seldom.

    Such a line begins while there is none of them, but one may come the next moment and then
    waits for what the line has begun. So there are rests between lines: the mean time of a query in
    the towers is 3 to 5% more than without a batch, and was a third more (benchmarks/README.md).

    Args:
        interactive: gives the Router's interactive requests, once there is a Router.
    """

    def __init__(self, interactive: Callable[[], Interactive]) -> None:
        self._interactive = interactive
        self._one_by_one = asyncio.Lock()
        self._rest_until_s = 0.0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a line's turn, which is the block."""
        interactive = self._interactive()
        if not interactive.were_within(QUIET_S):
            yield
            return
        async with self._one_by_one:
            await asyncio.sleep(self._rest_until_s - time.monotonic())
            await interactive.gap(MOST_WAIT_S)
            begin_s = time.monotonic()
            try:
                yield
            finally:
                now_s = time.monotonic()
                self._rest_until_s = now_s + min(REST * (now_s - begin_s), MOST_WAIT_S)


class Batches:
    """What a Router does about batches; nothing where the configuration has no folder.

    Args:
        config: the application's configuration.
        interactive: see `Turns`.

    Raises:
        ServiceError: the folder cannot be written.
    """

    def __init__(self, config: AppConfig, interactive: Callable[[], Interactive]) -> None:
        self._config = config
        self._turns = Turns(interactive)
        self._folder = folder_of(config)
        self.routes = Routes(self._folder, config.batches)

    @asynccontextmanager
    async def working(self, app: Starlette) -> AsyncIterator[None]:
        """Work batches off while the application runs."""
        if self._folder is None:
            yield
            return

        async def asked(batch: Batch, body: bytes) -> Answer:
            async with self._turns.turn():
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
