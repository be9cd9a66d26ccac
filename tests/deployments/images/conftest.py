"""Servers on this machine, good and hostile, and resolvers that lead to them."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp.abc import AbstractResolver

import serve_app
from deployments.errors import ImageSourceError
from deployments.image_config import ImageConfig
from deployments.images.addresses import AddressRules
from deployments.images.sources import ImageSources

CAT = (Path(serve_app.__file__).parent / "gallery" / "cat-face.png").read_bytes()
INSIDE = "127.0.0.1"
OUTSIDE = "127.0.0.2"  # stands for the public network in these tests
Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
Behaviour = Callable[["Site", Reader, Writer], Awaitable[None]]


class FakeResolver(AbstractResolver):
    """Answers look-ups in turn from lists of addresses; the last answer stays."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.names: list[str] = []

    async def resolve(self, host, port=0, family=socket.AF_UNSPEC):
        self.names.append(host)
        addresses = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "unknown name")
        return [
            {"hostname": host, "host": a, "port": 1, "family": family, "proto": 0, "flags": 0}
            for a in addresses
        ]

    async def close(self):
        self.names.append("closed")


@dataclass
class Site:
    """A server whose paths map to raw answers or to behaviours."""

    pages: dict[str, bytes | Behaviour] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    cat: bytes = CAT
    num_connections: int = 0
    waiting: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    port: int = 0

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def serve(self, reader: Reader, writer: Writer) -> None:
        self.num_connections += 1
        try:
            while True:
                request = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                self.requests.append(request)
                page = self.pages[request.split()[1].partition("?")[0]]
                if callable(page):
                    await page(self, reader, writer)
                else:
                    writer.write(page)
                    await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    def config(self, **settings: object) -> ImageConfig:
        """Return settings under which this site may be downloaded from."""
        allowed = {"allow_networks": ("127.0.0.0/8",), "ports": (self.port,)}
        return ImageConfig.model_validate(allowed | {"max_image_bytes": 20_000} | settings)

    def sources(self, **settings: object) -> ImageSources:
        """Return sources for which every name is this machine."""
        return ImageSources(self.config(**settings), FakeResolver(["127.0.0.1"]))

    async def fetch(self, path: str = "/cat.png", **settings: object) -> bytes:
        """Download a page with fresh sources."""
        sources = self.sources(**settings)
        try:
            return await sources.read(self.url(path))
        finally:
            await sources.close()

    async def refusal(self, path: str = "/cat.png", **settings: object) -> str:
        """Return the message with which a download fails."""
        with pytest.raises(ImageSourceError) as caught:
            await self.fetch(path, **settings)
        return str(caught.value)

    @staticmethod
    def answer(body: bytes, status: str = "200 OK", **headers: object) -> bytes:
        """Return a whole HTTP answer."""
        fields = {"Content_Length": len(body)} | headers
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        return "\r\n".join([f"HTTP/1.1 {status}", *lines, "\r\n"]).encode() + body

    @classmethod
    def redirect(cls, location: str, status: str = "302 Found") -> bytes:
        """Return an answer that leads elsewhere."""
        return cls.answer(b"", status, Location=location)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    server = await asyncio.start_server(site.serve, "127.0.0.1", 0)
    site.port = server.sockets[0].getsockname()[1]
    yield site
    server.close()


@dataclass
class Network:
    """A server inside that must not be reached, one outside that redirects, and a log."""

    port: int = 0
    location: bytes = b""
    reached_inside: list[bytes] = field(default_factory=list)
    connections: list[str] = field(default_factory=list)
    resolver: FakeResolver | None = None

    async def attempt(self, url: str, *answers: list[str], **settings: object) -> str | bytes:
        """Return the image, or the words of its refusal; names lead to the answers in turn."""
        self.resolver = FakeResolver(*answers)
        allowed = {"ports": (80, 443, self.port), "allow_networks": (f"{OUTSIDE}/32",)}
        sources = ImageSources(ImageConfig.model_validate(allowed | settings), self.resolver)
        try:
            return await sources.read(url)
        except ImageSourceError as error:
            return str(error)
        finally:
            await sources.close()

    async def inside(self, reader, writer):
        self.reached_inside.append(await reader.readline())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nsecret")
        writer.close()

    async def outside(self, reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 302 Found\r\nConnection: close\r\nContent-Length: 0\r\n")
        writer.write(b"Location: " + self.location + b"\r\n\r\n")
        writer.close()


@pytest.fixture
async def network(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Network]:
    """Both servers on one port; connections are recorded, and none leaves the machine."""
    network = Network()
    loop_class = asyncio.selector_events.BaseSelectorEventLoop
    connect = loop_class.sock_connect

    async def recorded_connect(loop, sock, address):
        network.connections.append(address[0])
        if address[0] not in (INSIDE, OUTSIDE):
            raise ConnectionRefusedError
        await connect(loop, sock, address)

    def no_lookup(*args, **kwargs):
        raise AssertionError("the system's resolver was asked")

    inside = await asyncio.start_server(network.inside, INSIDE, 0)
    network.port = inside.sockets[0].getsockname()[1]
    outside = await asyncio.start_server(network.outside, OUTSIDE, network.port)
    monkeypatch.setattr(loop_class, "sock_connect", recorded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", no_lookup)
    yield network
    for server in (inside, outside):
        server.close()
        await server.wait_closed()


@pytest.fixture
def guard_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every address passes: the state of a server without the guard."""
    monkeypatch.setattr(AddressRules, "allows", lambda self, address: True)


@pytest.fixture
def fake_resolver() -> type[FakeResolver]:
    """The class of resolvers that answer from lists."""
    return FakeResolver


@pytest.fixture(scope="session")
def cat() -> bytes:
    """An image of the gallery."""
    return CAT
