"""Images from http(s) URLs: bounded in bytes, time and number, and only from allowed addresses.

One pooled session per process. Redirects are followed by hand, so that each hop is checked.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from deployments.errors import ImageSourceError
from deployments.image_config import ImageConfig
from deployments.images.addresses import (
    AddressRules,
    GuardedResolver,
    RefusedError,
    SystemResolver,
    parse_url,
)

REDIRECTS = (301, 302, 303, 307, 308)
SHOWN_CHARS = 100
HEADERS = {
    "Accept": "image/*, */*;q=0.1",
    # A compressed answer is refused: what it unpacks to has no bound before it is unpacked.
    "Accept-Encoding": "identity",
    "User-Agent": "jina-clip-serve",
}

Claim = Callable[[int], None]
"""Told the bytes that an image takes, before they are read; raises where there is no room."""


def shorten(text: str) -> str:
    """Return the start of a text, for messages."""
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."


def shown(url: URL) -> str:
    """Return the start of a URL for messages, without its user, password and query."""
    return shorten(f"{url.scheme}://{url.host_port_subcomponent or ''}{url.raw_path}")


def too_large(name: str, limit_bytes: int) -> str:
    """Return the message for more bytes than the limit."""
    return f"{name} has more than {limit_bytes:,} bytes (images.max_image_bytes); use a smaller one"


class Downloads:
    """Fetches images over HTTP; belongs to the event loop of its first fetch."""

    def __init__(self, config: ImageConfig, resolver: AbstractResolver | None = None) -> None:
        self._config = config
        self._rules = AddressRules(config)
        self._resolver = GuardedResolver(
            self._rules, resolver or SystemResolver(config.max_fetches)
        )
        self._slots = asyncio.Semaphore(config.max_fetches)
        # A host's entry lives as long as a fetch from it holds or awaits a slot.
        self._host_slots: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._session: aiohttp.ClientSession | None = None

    async def read(self, source: str, claim: Claim) -> bytes:
        """Download an image.

        The time limit runs from when the fetch gets its slot: waiting for one is the server's
        load, not the host's fault, and is bounded by the request's own time.

        Raises:
            ImageSourceError: the URL is refused, or the download failed or broke a limit.
        """
        if not self._config.fetch:
            raise ImageSourceError(
                "image URLs are not downloaded by this server (images.fetch is false); "
                "send the bytes as base64 or as a data URI"
            )
        name = "the image URL"
        try:
            url = parse_url(source)
            name = f"the image {shown(url)}"
            self._rules.check(url)
            async with self._slot(str(url.raw_host)):
                async with asyncio.timeout(self._config.fetch_timeout_s):
                    return await self._follow(url, claim)
        except (RefusedError, aiohttp.ClientError, OSError) as error:
            raise ImageSourceError(f"{name} cannot be downloaded: {self._reason(error)}") from None

    def _reason(self, error: Exception) -> str:
        """Say what went wrong; texts of the client's own errors may hold addresses and secrets."""
        match error:
            case RefusedError():
                return str(error)
            case aiohttp.ServerTimeoutError():
                return f"its host did not connect within {self._config.connect_timeout_s:g} s"
            case TimeoutError():
                return f"it took longer than {self._config.fetch_timeout_s:g} s"
            case aiohttp.ClientSSLError():
                return "its host shows no TLS certificate that can be trusted"
            case aiohttp.ClientConnectorError():
                return "its host does not accept connections"
            case _:
                return "the answer broke off or is not HTTP"

    async def close(self) -> None:
        """Close the pooled connections."""
        if self._session is not None:
            await self._session.close()
        await self._resolver.close()

    @asynccontextmanager
    async def _slot(self, host: str) -> AsyncIterator[None]:
        host_slots = self._host_slots.get(host)
        if host_slots is None:
            host_slots = asyncio.Semaphore(self._config.max_fetches_per_host)
            self._host_slots[host] = host_slots
        # The host's slot first: what waits for a slow host must not hold one of the whole.
        async with host_slots, self._slots:
            yield

    async def _follow(self, url: URL, claim: Claim) -> bytes:
        num_redirects = 0
        try:
            while num_redirects <= self._config.max_redirects:
                answer = await self._get(url, claim)
                if isinstance(answer, bytes):
                    return answer
                num_redirects += 1
                url = self._rules.check(parse_url(answer, base=url))
        except RefusedError as error:
            if num_redirects == 0:
                raise
            raise RefusedError(f"after redirect {num_redirects}, {error}") from None
        raise RefusedError(f"it redirects more than {self._config.max_redirects} times")

    async def _get(self, url: URL, claim: Claim) -> bytes | str:
        """Return the body, or where the answer redirects to."""
        if self._session is None:
            self._session = self._open_session()
        async with self._session.get(url, allow_redirects=False) as answer:
            if answer.status in REDIRECTS and "Location" in answer.headers:
                return answer.headers["Location"]
            if answer.status != 200:
                raise RefusedError(f"its host answered with status {answer.status}")
            encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
            if encoding not in ("", "identity"):
                raise RefusedError("its host sent it compressed although asked not to")
            return await self._body(answer, claim)

    async def _body(self, answer: aiohttp.ClientResponse, claim: Claim) -> bytes:
        limit_bytes = self._config.max_image_bytes
        # A body without a length is claimed as it comes.
        size = claimed = answer.content_length or 0
        if size > limit_bytes:
            raise RefusedError(too_large("it", limit_bytes))
        claim(size)
        body = bytearray()
        async for piece in answer.content.iter_any():
            size = len(body) + len(piece)
            if size > limit_bytes:
                raise RefusedError(too_large("it", limit_bytes))
            if size > claimed:
                claim(claimed := size)
            body += piece
        return bytes(body)

    def _open_session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            resolver=self._resolver,
            socket_factory=self._rules.open_socket,
            # Each connection uses its own checked look-up; pooling is what saves look-ups.
            use_dns_cache=False,
            limit=self._config.max_fetches,
            limit_per_host=self._config.max_fetches_per_host,
        )
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(sock_connect=self._config.connect_timeout_s, total=None),
            headers=HEADERS,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
