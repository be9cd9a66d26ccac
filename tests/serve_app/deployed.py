"""Another application beside the session's, on the same Ray Serve; and an app on a uvicorn."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import uvicorn

from deployments.config import AppConfig


@contextlib.contextmanager
def deployed(service: Any, config: AppConfig, name: str) -> Iterator[httpx.Client]:
    """Deploy an application below `/name`; yields a client, and deletes it after."""
    from ray import serve

    from serve_app.launch import launch

    launch(config, name, f"/{name}")
    with httpx.Client(base_url=f"{service.url}/{name}", timeout=120) as client:
        yield client
    serve.delete(name)


@contextlib.asynccontextmanager
async def on_uvicorn(app: Any, protocol: Any) -> AsyncIterator[int]:
    """Run an app as Ray Serve starts one; yields the port."""
    config = uvicorn.Config(app, http=protocol, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    task = asyncio.create_task(server.serve([listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task
