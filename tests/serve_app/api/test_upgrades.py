"""Requests that offer another protocol, over uvicorn as Ray Serve starts it."""

import asyncio

import pytest

from serve_app.api.upgrades import PlainHttp
from tests.serve_app.deployed import on_uvicorn

OFFERS = {
    "JDK": "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n",
    "Apache": "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n",
    "lower case": "connection: keep-alive, upgrade\r\nupgrade: h2c\r\n",
    "none": "",
}
BODY = b"0123456789" * 20


async def echo(scope, receive, send) -> None:
    """Answer with the method, the path and the body."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    content = scope["method"].encode() + b" " + scope["raw_path"] + b" " + body
    size = str(len(content)).encode()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", size)]}
    )
    await send({"type": "http.response.body", "body": content})


async def answers(port: int, *packets: bytes, number: int = 1) -> list[bytes]:
    """Send packets, each by itself, on one connection; return the bodies of the answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for packet in packets:
        writer.write(packet)
        await writer.drain()
        await asyncio.sleep(0.01)  # so that a packet arrives alone; nothing depends on it
    bodies = []
    async with asyncio.timeout(10):
        for _ in range(number):
            head = await reader.readuntil(b"\r\n\r\n")
            size = next(x for x in head.lower().split(b"\r\n") if x.startswith(b"content-length"))
            bodies.append(await reader.readexactly(int(size.split(b":")[1])))
    writer.close()
    return bodies


def head(extra: str, length: str = f"Content-Length: {len(BODY)}") -> bytes:
    return f"POST /a%20b HTTP/1.1\r\nHost: x\r\n{length}\r\n{extra}\r\n".encode()


CHUNKED = b"64\r\n" + BODY[:100] + b"\r\n64\r\n" + BODY[100:] + b"\r\n0\r\n\r\n"


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
async def test_an_offer_is_passed_over_and_the_request_answered(offer):
    """With a length or chunked, in one packet or cut anywhere, and the next one behind it."""
    expected = b"POST /a%20b " + BODY
    async with on_uvicorn(echo, PlainHttp) as port:
        whole = head(offer) + BODY
        chunked = head(offer, "Transfer-Encoding: chunked") + CHUNKED
        for request in (whole, chunked):
            assert await answers(port, request) == [expected]
            for cut in (30, len(head(offer)), len(request) - 50):
                assert await answers(port, request[:cut], request[cut:]) == [expected]
        assert await answers(port, whole + chunked + whole, number=3) == [expected] * 3


async def test_a_thousand_offers_in_one_packet_are_passed_over():
    """Each was read inside the one before it, until Python allowed no more."""
    request = b"GET /a HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    async with on_uvicorn(echo, PlainHttp) as port:
        assert await answers(port, request * 1000, number=1000) == [b"GET /a "] * 1000


async def test_without_it_the_body_is_lost():
    """Uvicorn alone answers the JDK's request as if its body were empty."""
    async with on_uvicorn(echo, "httptools") as port:
        assert await answers(port, head(OFFERS["JDK"]) + BODY) == [b"POST /a%20b "]


async def test_connect_is_answered_once():
    """CONNECT is no offer; it is not read again and again."""
    async with on_uvicorn(echo, PlainHttp) as port:
        (answer,) = await answers(port, b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n")
        assert answer
