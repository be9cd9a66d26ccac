"""Images by URL: a server in a process of its own that counts, and callers who send addresses."""

import asyncio
import http.server
import multiprocessing
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import httpx

from benchmarks.harness.outcomes import Outcome
from serve_app.gallery import FOLDER
from serve_app.listening import LOOPBACK

PICTURE = (FOLDER / "bear.png").read_bytes()
PER_REQUEST = 8
TIMEOUT_S = 60


@contextmanager
def image_server(image_bytes: int) -> Iterator[tuple[int, Connection]]:
    """Serve pictures of one size, each path another one; yields the port, and whom to ask.

    Whatever is sent there is answered with the set of requests that were downloaded for.
    """
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there, image_bytes))
    process.start()
    try:
        yield here.recv(), here
    finally:
        process.terminate()
        process.join()


def _serve(pipe: Connection, image_bytes: int) -> None:
    seen: set[str] = set()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            seen.add(self.path.split("/")[1])
            body = (PICTURE + self.path.encode()).ljust(image_bytes, b"\0")
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Write nothing."""

    import threading

    server = http.server.ThreadingHTTPServer((LOOPBACK, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pipe.send(server.server_port)
    while True:
        pipe.recv()
        pipe.send(set(seen))


async def closed_loop(url: str, port: int, seconds: float, callers: int) -> list[Outcome]:
    """Ask with a few callers who always wait for their answer."""
    end_s = time.monotonic() + seconds
    outcomes: list[Outcome] = []

    async def call(client: httpx.AsyncClient, caller: int) -> None:
        number = 0
        while time.monotonic() < end_s:
            number += 1
            name = f"closed-{end_s}-{caller}-{number}"
            outcomes.append(await ask(client, port, name, time.monotonic()))

    async with _client(url) as client:
        await asyncio.gather(*(call(client, caller) for caller in range(callers)))
    return outcomes


async def open_loop(url: str, port: int, seconds: float, rate: float) -> dict[str, Outcome]:
    """Send at random times, whatever comes back; return the outcomes by the requests' names."""
    clock = random.Random(7)
    start_s = due_s = time.monotonic()
    calls: dict[str, asyncio.Task[Outcome]] = {}
    async with _client(url) as client:
        while (due_s := due_s + clock.expovariate(rate)) < start_s + seconds:
            await asyncio.sleep(max(0, due_s - time.monotonic()))
            name = f"open-{len(calls)}"
            calls[name] = asyncio.create_task(ask(client, port, name, due_s))
        await asyncio.gather(*calls.values())
    return {name: call.result() for name, call in calls.items()}


async def ask(client: httpx.AsyncClient, port: int, name: str, due_s: float) -> Outcome:
    """Send the addresses of a few images that no other request has."""
    addresses = [f"http://{LOOPBACK}:{port}/{name}/{i}" for i in range(PER_REQUEST)]
    body: dict[str, Any] = {"input": [{"image": x} for x in addresses], "dimensions": 8}
    sent_s = time.monotonic()
    try:
        answer = await client.post("/v1/embeddings", json=body)
        status = answer.status_code
    except httpx.HTTPError:
        status = 0
    return Outcome("images by URL", due_s, sent_s, time.monotonic(), status, items=PER_REQUEST)


def _client(url: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    return httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits)
