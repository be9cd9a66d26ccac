"""Reading a body: bounded in bytes, in what the Router holds, and in time."""

import asyncio
import gzip

import pytest
from starlette.requests import Request

from deployments.config import RouterConfig
from deployments.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    OverloadedError,
    UnsupportedCodingError,
)
from deployments.routing.admission import Budget
from serve_app.api import body as reading
from serve_app.api.body import read_body

LIMITS = RouterConfig(max_body_bytes=1000)


def request(*parts: bytes, length: str | None = None, coding: str = "", gate=None) -> Request:
    """A request whose body comes in parts, the last one once the gate is open."""
    waiting = list(parts)

    async def receive() -> dict[str, object]:
        if len(waiting) == 1 and gate is not None:
            await gate.wait()
        part = waiting.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(waiting)}

    headers = [(b"content-encoding", coding.encode())] if coding else []
    headers += [(b"content-length", length.encode())] if length is not None else []
    return Request({"type": "http", "headers": headers}, receive)


async def read(asked: Request, limits: RouterConfig = LIMITS, budget: Budget | None = None):
    """Return the body, and the bytes that are held for it then."""
    with (budget or Budget("bytes", 10_000)).hold("interactive") as hold:
        return await read_body(asked, limits, hold), hold.units


@pytest.mark.parametrize("declared", ["3", "0" * 5000 + "3", "", "x", "-3", None])
async def test_a_body_is_read_whatever_length_is_declared(declared):
    """The server counts for itself; thousands of digits are no error of its own."""
    assert await read(request(b"abc", length=declared)) == (b"abc", 3)


@pytest.mark.parametrize("declared", ["1001", "9" * 5000, "0" * 5000 + "1001"])
async def test_a_declared_length_over_the_limit_is_refused_unread(declared):
    """Before a byte of the body is in memory."""
    with pytest.raises(BodyTooLargeError, match="larger than 1,000 bytes"):
        await read(request(length=declared))


@pytest.mark.parametrize("length", ["800", None])
async def test_a_body_is_held_while_it_arrives(length):
    """With a length all of it at once, without one what is here; a second one has no room."""
    budget, gate = Budget("bytes", 1000), asyncio.Event()
    first = asyncio.create_task(
        read(request(b"a" * 300, b"b" * 500, length=length, gate=gate), budget=budget)
    )
    for _ in range(5):
        await asyncio.sleep(0)
    assert budget.outstanding == (300 if length is None else 800)
    gate.set()
    with pytest.raises(OverloadedError, match="bytes are outstanding"):
        await read(request(b"c" * 701, length="701"), budget=budget)
    assert await first == (b"a" * 300 + b"b" * 500, 800)
    assert budget.outstanding == 0


async def test_a_refused_body_is_not_read():
    """The refusal costs its headers alone."""
    budget = Budget("bytes", 1000)
    budget.admit(900, "interactive")
    unread = request(length="200")  # reading it would fail
    with pytest.raises(OverloadedError):
        await read(unread, budget=budget)
    with pytest.raises(UnsupportedCodingError):
        await read(request(coding="br"), budget=budget)


async def test_a_packed_body_is_held_as_what_it_becomes():
    """Unpacked it may have all that a body may have; room for that is there before."""
    packed = gzip.compress(b"a" * 900)
    assert await read(request(packed, coding="gzip")) == (b"a" * 900, 900)
    budget = Budget("bytes", 1100)
    budget.admit(100, "interactive")
    with pytest.raises(OverloadedError):
        await read(request(packed, coding="gzip"), budget=budget)


@pytest.mark.parametrize(
    ("parts", "limits", "received"),
    [
        ((b"", b"x"), {"min_body_bytes_per_s": 1000}, 0),  # nothing comes
        ((b"a" * 10, b"x"), {"min_body_bytes_per_s": 1000}, 10),  # too little comes
        ((b"a" * 900, b"x"), {"body_timeout_s": 0.05, "min_body_bytes_per_s": 1}, 900),
    ],
)
async def test_a_body_that_comes_too_slowly_ends_its_request(monkeypatch, parts, limits, received):
    """By its pace after the first seconds, and by the time for the whole; its bytes are free."""
    monkeypatch.setattr(reading, "GRACE_S", 0.05)
    budget = Budget("bytes", 10_000)
    slow = request(*parts, gate=asyncio.Event())
    limits = LIMITS.model_copy(update=limits)
    with pytest.raises(BodyTimeoutError, match=f"{received} bytes so far; send it within"):
        await read(slow, limits, budget)
    assert budget.outstanding == 0


async def test_a_body_that_keeps_the_pace_is_read(monkeypatch):
    """Each part that comes gives time for the next."""
    monkeypatch.setattr(reading, "GRACE_S", 0.0)
    gate = asyncio.Event()
    limits = LIMITS.model_copy(update={"min_body_bytes_per_s": 1})
    reader = asyncio.create_task(read(request(b"a" * 500, b"b", gate=gate), limits))
    await asyncio.sleep(0.01)  # past the first part's grace
    gate.set()
    assert (await reader)[1] == 501
