"""Where images come from: bytes, base64, data URIs, http(s) and s3:// URLs, and local files.

What comes out are encoded bytes within the size limit; whether they are an image is decided
where they are opened.
"""

import asyncio
import os
import re
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote_to_bytes

import pybase64
from aiohttp.abc import AbstractResolver

from deployments.errors import ImageSourceError
from deployments.image_config import ImageConfig
from deployments.images.http import Claim, Downloads, shorten, too_large
from deployments.images.s3 import Buckets
from deployments.model.errors import ImageError

SCHEME = re.compile(r"([a-z][a-z0-9+.-]{0,30}):", re.IGNORECASE)
BLANKS = " \t\r\n\v\f\ufeff"  # around a source, the byte order mark of a file included
UNTYPED = ("", "application/octet-stream", "binary/octet-stream")
MAX_PATH_CHARS = 4096
LARGE_CHARS = 1024 * 1024  # of base64: more is decoded off the event loop
FORMS = "an http, https or s3 URL, a data:image/...;base64 URI or base64"


def anything(_size_bytes: int) -> None:
    """Claim without a bound."""


class ImageSources:
    """Reads images from wherever the configuration allows; one per process and event loop.

    Nothing is opened before the first `read` that needs it. `resolver` looks host names up in
    place of the system; what it returns is checked all the same.
    """

    def __init__(self, config: ImageConfig, resolver: AbstractResolver | None = None) -> None:
        self._config = config
        self._downloads = Downloads(config, resolver)
        self._buckets = Buckets(config)
        self._threads = ThreadPoolExecutor(config.max_fetches, thread_name_prefix="image-source")

    async def read(self, source: bytes | str, claim: Claim = anything) -> bytes:
        """Return the encoded bytes of an image.

        Args:
            source: where it is.
            claim: called on this event loop with the bytes that it takes, as far as they are
                known, before they are read; what it raises ends the read.

        Raises:
            ImageError: bytes or base64 that exceed the limit.
            ImageSourceError: a string of no known form, or one whose image cannot be had.
        """
        if isinstance(source, bytes):
            if len(source) > self._config.max_image_bytes:
                raise ImageError(too_large("the image", self._config.max_image_bytes))
            claim(len(source))
            return source
        source = source.strip(BLANKS)
        scheme = SCHEME.match(source)
        if scheme is not None:
            return await self._read_url(scheme[1].lower(), source, claim)
        if self._config.local_files and is_file(source):
            return await self._in_thread(self._read_file, source, claim)
        return await self._decode("the image, a string that is not a URL,", source, claim)

    async def close(self) -> None:
        """Close connections; reads under way are not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._downloads.close()

    async def _read_url(self, scheme: str, source: str, claim: Claim) -> bytes:
        if scheme in ("http", "https"):
            return await self._downloads.read(source, claim)
        if scheme == "data":
            payload = data_payload(source)
            return await self._decode("the content of the data URI", payload, claim)
        if scheme == "s3":
            return await self._in_thread(self._buckets.read, source, claim)
        if scheme == "file" and not (self._config.local_files or self._config.file_roots):
            raise ImageSourceError(f"files of the server are not read; send {FORMS}")
        if scheme == "file":
            path = self._allowed(file_path(source))
            return await self._in_thread(self._read_file, path, claim)
        raise ImageSourceError(f"the image is a URL of a scheme that is not read; send {FORMS}")

    def _allowed(self, path: str) -> str:
        """Return a path that may be read, without symbolic links and `..`."""
        if self._config.local_files or "\0" in path:  # no path has a NUL: reading will say so
            return path
        real = os.path.realpath(path)
        roots = (os.path.realpath(root) for root in self._config.file_roots)
        if not any(os.path.commonpath((root, real)) == root for root in roots):
            raise ImageSourceError(f"this file of the server is not read; send {FORMS}")
        return real

    def _read_file(self, path: str, claim: Claim) -> bytes:
        return read_file(path, self._config.max_image_bytes, claim)

    async def _decode(self, name: str, text: str, claim: Claim) -> bytes:
        limit_bytes = self._config.max_image_bytes
        claim(len(text) * 3 // 4)
        if len(text) <= LARGE_CHARS:
            return decode_base64(name, text, limit_bytes)
        return await asyncio.to_thread(decode_base64, name, text, limit_bytes)

    async def _in_thread(
        self, read: Callable[[str, Claim], bytes], source: str, claim: Claim
    ) -> bytes:
        loop = asyncio.get_running_loop()

        async def claim_here(size_bytes: int) -> None:
            claim(size_bytes)

        def claim_there(size_bytes: int) -> None:
            claimed = asyncio.run_coroutine_threadsafe(claim_here(size_bytes), loop)
            claimed.result(self._config.fetch_timeout_s)

        return await loop.run_in_executor(self._threads, read, source, claim_there)


def data_payload(uri: str) -> str:
    """Return what follows the comma of `data:image/...;base64,`; the type may say nothing.

    Raises:
        ImageSourceError: another kind of data URI.
    """
    header, comma, payload = uri.partition(",")
    kind, *parameters = (part.strip() for part in header[len("data:") :].lower().split(";"))
    is_image = kind.startswith("image/") or kind in UNTYPED
    if not (comma and is_image and parameters[-1:] == ["base64"]):
        raise ImageSourceError("the data URI does not begin like data:image/png;base64,")
    return payload


def decode_base64(name: str, text: str, limit_bytes: int) -> bytes:
    """Decode standard or URL-safe base64, padded or not, with line breaks or without.

    Raises:
        ImageSourceError: not base64.
        ImageError: more than `limit_bytes`.
    """
    try:
        data = pybase64.b64decode(text, validate=True)  # as most write it, in one pass
    except ValueError:
        data = b""
    data = data or _decode_variant(name, text)
    if len(data) > limit_bytes:
        raise ImageError(too_large(name, limit_bytes))
    return data


def _decode_variant(name: str, text: str) -> bytes:
    """Decode what is not plain standard base64, or say why it is none."""
    body = text.rstrip("=\r\n")
    if not body:
        raise ImageSourceError(f"{name} is empty; send {FORMS}")
    num_pads = text.count("=", len(body))
    if "=" in body:
        raise ImageSourceError(f"{name} is not base64: it has '=' before its end")
    url_safe = "-" in body or "_" in body
    if url_safe and ("+" in body or "/" in body):
        raise ImageSourceError(f"{name} is not base64: it mixes the two alphabets")
    body = body.replace("\r", "").replace("\n", "")
    pads = -len(body) % 4
    try:
        data = pybase64.b64decode(body + "=" * pads, "-_" if url_safe else None, validate=True)
    except ValueError:  # not ASCII, or not of the alphabet
        raise ImageSourceError(f"{name} is not base64; send {FORMS}") from None
    if num_pads not in (0, pads):
        raise ImageSourceError(f"{name} is not base64: {num_pads} '=' at its end do not fit it")
    return data


def is_file(path: str) -> bool:
    """Whether the string can be a path, and a regular file is there."""
    return len(path) <= MAX_PATH_CHARS and os.path.isfile(path)


def file_path(url: str) -> str:
    """Return the path of a `file://` URL.

    Raises:
        ImageSourceError: it names another machine.
    """
    path = url.partition(":")[2]
    if path.startswith("//"):
        machine, slash, path = path[2:].partition("/")
        if machine not in ("", "localhost"):
            raise ImageSourceError(
                "the file URL names another machine; write file:///folder/cat.jpg"
            )
        path = slash + path
    return os.fsdecode(unquote_to_bytes(path))  # any name, also one that is not UTF-8


def read_file(path: str, limit_bytes: int, claim: Claim) -> bytes:
    """Return the bytes of a regular file, whose size is claimed first.

    Raises:
        ImageSourceError: it is missing, unreadable, too large or no regular file.
    """
    name = f"the file {shorten(path)!r}"
    try:
        with open(path, "rb", opener=open_at_once) as file:
            status = os.fstat(file.fileno())
            is_regular = stat.S_ISREG(status.st_mode)
            claim(min(status.st_size, limit_bytes))
            data = file.read(limit_bytes + 1) if is_regular else b""
    except OSError as error:
        raise ImageSourceError(f"{name} cannot be read: {error.strerror}") from error
    except ValueError as error:  # characters that no path has
        raise ImageSourceError(f"{name} cannot be read: {error}") from error
    if not is_regular:
        raise ImageSourceError(f"{name} is no regular file")
    if len(data) > limit_bytes:
        raise ImageSourceError(too_large(name, limit_bytes))
    return data


def open_at_once(path: str, flags: int) -> int:
    """Open a path without waiting, as for a pipe's writer."""
    return os.open(path, flags | os.O_NONBLOCK)
