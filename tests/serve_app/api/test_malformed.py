"""Broken and slow requests on a connection of their own, over uvicorn as Ray Serve starts it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from benchmarks import malformed
from serve_app.api import body, ingress
from serve_app.api.upgrades import PlainHttp
from tests.deployments.fake_towers import Served
from tests.serve_app.deployed import on_uvicorn


@contextlib.asynccontextmanager
async def serving(**limits) -> AsyncIterator[int]:
    """A Router whose towers are stand-ins, with its routes; yields the port."""
    router = Served(**limits).router
    app = ingress.http_app(router.config, lambda: router)
    async with on_uvicorn(app, PlainHttp) as port:
        yield port


async def test_broken_connections_are_never_a_fault_of_the_server():
    """Hundreds, broken at random places: no 5xx, none stays open, and the next is answered."""
    async with serving() as port:
        seen = await malformed.attack(port, 300, seed=3)
        assert sum(seen.values()) == 300
        assert not [status for status in seen if status.startswith("5")]
        assert seen["hangs"] == 0
        assert seen["400"] > 50
        assert seen["200"] > 0  # some faults leave a good request


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/classify"])
async def test_a_body_that_does_not_come_is_408_and_the_connection_is_closed(monkeypatch, path):
    """In our form of an error, and without waiting for the rest."""
    monkeypatch.setattr(body, "GRACE_S", 0.1)
    async with serving(min_body_bytes_per_s=1_000_000) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{{".encode())
        async with asyncio.timeout(10):
            answer = await reader.read()  # to its end: the server closes
        writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"REQUEST_TIMEOUT"' in answer
    assert b"connection: close" in answer.lower()
