"""The body of a request, bounded in bytes and in time while it is read."""

import asyncio
import math
from collections.abc import AsyncGenerator

from starlette.requests import Request

from deployments.config import RouterConfig
from deployments.errors import BodyTimeoutError, BodyTooLargeError
from deployments.routing.admission import Hold
from serve_app.api import codings

GRACE_S = 5.0  # before the pace of a body is asked for
MAX_DIGITS = 18  # of a length in bytes


async def read_body(request: Request, limits: RouterConfig, hold: Hold) -> bytes:
    """Return the body, unpacked.

    Args:
        request: whose body has not been read.
        limits: of bytes and of time.
        hold: of bytes; takes the length that is declared before anything is read, or else what
            arrives, and in the end has what the body takes.

    Raises:
        BodyTooLargeError: more than `max_body_bytes`, as sent or once it is unpacked.
        BodyTimeoutError: it took too long, or came more slowly than `min_body_bytes_per_s`.
        RequestTooLargeError, OverloadedError: there is no room for it; see `Budget.admit`.
        RequestError: broken, or packed in a way that is not read here.
    """
    packed = codings.codings_of(",".join(request.headers.getlist("content-encoding")))
    most = limits.max_body_bytes
    hold.resize(_declared(request, most))
    body = await _received(request, limits, hold)
    if packed:
        hold.resize(len(body) + most)
        body = await asyncio.to_thread(codings.decoded, body, packed, most)
    hold.resize(len(body))
    return body


def _declared(request: Request, most: int) -> int:
    """Return the length that a request declares, 0 where it declares none."""
    digits = request.headers.get("content-length", "").lstrip("0")
    if not digits.isdecimal():
        return 0
    # Python reads no number of thousands of digits.
    if len(digits) > MAX_DIGITS or int(digits) > most:
        raise _too_large(most)
    return int(digits)


async def parts_of(
    request: Request, limits: RouterConfig, most_bytes: int, timeout_s: float = math.inf
) -> AsyncGenerator[bytes, None]:
    """Yield the parts of a body as they arrive.

    Args:
        request: whose body has not been read.
        limits: the pace that is asked for.
        most_bytes: in all.
        timeout_s: for the whole body.

    Raises:
        BodyTooLargeError, BodyTimeoutError: see `read_body`.
    """
    begin_s = asyncio.get_running_loop().time()
    pace, size, stream = limits.min_body_bytes_per_s, 0, request.stream()
    while True:
        try:
            async with asyncio.timeout_at(begin_s + min(timeout_s, GRACE_S + size / pace)):
                part = await anext(stream, None)
        except TimeoutError:
            within = f"within {timeout_s:g} s and " if timeout_s < math.inf else ""
            raise BodyTimeoutError(
                f"the body did not arrive in time: {size:,} bytes so far; send it {within}"
                f"at {pace:,} bytes per second or more"
            ) from None
        if part is None:
            return
        size += len(part)
        if size > most_bytes:
            raise _too_large(most_bytes)
        yield part


async def _received(request: Request, limits: RouterConfig, hold: Hold) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in parts_of(request, limits, limits.max_body_bytes, limits.body_timeout_s):
        size += len(part)
        if size > hold.units:
            hold.resize(size)
        parts.append(part)
    return b"".join(parts)


def _too_large(most: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body is larger than {most:,} bytes; send fewer or smaller items")
