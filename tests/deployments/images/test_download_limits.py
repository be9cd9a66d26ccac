"""Bounds on the bytes, the time and the number of downloads."""

import asyncio
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from deployments.errors import ImageSourceError
from deployments.images.sources import ImageSources

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
Behaviour = Callable[[Any, Reader, Writer], Awaitable[None]]


async def send(writer: Writer, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def test_a_size_at_the_limit_passes(site: Any) -> None:
    """The limit itself is allowed, one byte more is not, with or without a Content-Length."""
    for size, fits in (
        (site.config().max_image_bytes, True),
        (site.config().max_image_bytes + 1, False),
    ):
        body = bytes(size)
        chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (size, body)
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        site.pages = {"/length": site.answer(body), "/chunks": head + chunked}
        for path in site.pages:
            if fits:
                assert await site.fetch(path) == body
            else:
                assert "more than 20,000 bytes" in await site.refusal(path)


async def test_a_large_content_length_is_refused_unread(site: Any) -> None:
    """An announced size over the limit ends the download before any of the body."""
    site.pages["/cat.png"] = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"
    assert "more than 20,000 bytes" in await site.refusal()


async def test_an_endless_body_is_cut_off(site: Any) -> None:
    """A body without an end stops at the limit and takes no memory to speak of."""
    num_sent = 0

    async def endless(_: object, __: Reader, writer: Writer) -> None:
        nonlocal num_sent
        await send(writer, b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await send(writer, bytes(65536))
            num_sent += 65536

    site.pages["/cat.png"] = endless
    tracemalloc.start()
    try:
        assert "more than 20,000 bytes" in await site.refusal()
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert num_sent < 50_000_000


async def silence(site: Any, _: Reader, __: Writer) -> None:
    site.waiting.put_nowait(site.requests[-1])
    await asyncio.sleep(30)


async def drip_header(_: object, __: Reader, writer: Writer) -> None:
    await send(writer, b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        await send(writer, b"y")
        await asyncio.sleep(0.01)


async def drip_body(_: object, __: Reader, writer: Writer) -> None:
    await send(writer, b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
    while True:
        await send(writer, b"y")
        await asyncio.sleep(0.01)


async def drip_chunks(_: object, __: Reader, writer: Writer) -> None:
    await send(writer, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await send(writer, b"1\r\ny\r\n")
        await asyncio.sleep(0.01)


async def go_on(_: object, __: Reader, writer: Writer) -> None:
    while True:
        await send(writer, b"HTTP/1.1 100 Continue\r\n\r\n")
        await asyncio.sleep(0.01)


async def slow_loop(site: Any, _: Reader, writer: Writer) -> None:
    await asyncio.sleep(0.05)
    await send(writer, site.redirect("/cat.png"))


@pytest.mark.parametrize(
    "behaviour", [silence, drip_header, drip_body, drip_chunks, go_on, slow_loop]
)
async def test_one_deadline_covers_everything(site: Any, behaviour: Behaviour) -> None:
    """A host that keeps the connection busy without end is left when the time is up."""
    site.pages["/cat.png"] = behaviour
    message = await site.refusal(fetch_timeout_s=0.2, max_redirects=10_000)
    assert message.endswith("cannot be downloaded: it took longer than 0.2 s")


async def test_a_slow_lookup_counts(site: Any, fake_resolver: Any) -> None:
    """The deadline covers the look-up of the name."""

    class SlowResolver(fake_resolver):
        async def resolve(self, *_: object) -> list[Any]:
            await asyncio.sleep(30)
            return []

    sources = ImageSources(site.config(fetch_timeout_s=0.1), SlowResolver([]))
    with pytest.raises(ImageSourceError, match=r"took longer than 0\.1 s"):
        await sources.read(site.url("/cat.png", host="cat.example"))
    await sources.close()


@pytest.mark.parametrize(
    ("limits", "allowed"), [({"max_fetches": 3}, 3), ({"max_fetches_per_host": 5}, 5)]
)
async def test_fetches_at_once_are_limited(site: Any, limits: dict[str, int], allowed: int) -> None:
    """Many fetches all succeed, never more at once than in all or per host are allowed."""
    at_once = most_at_once = 0

    async def wait_a_little(_: object, __: Reader, writer: Writer) -> None:
        nonlocal at_once, most_at_once
        at_once += 1
        most_at_once = max(most_at_once, at_once)
        await asyncio.sleep(0.01)
        at_once -= 1
        await send(writer, site.answer(site.cat))

    site.pages["/cat.png"] = wait_a_little
    sources = site.sources(**limits)
    images = await asyncio.gather(*(sources.read(site.url("/cat.png")) for _ in range(20)))
    await sources.close()
    assert images == [site.cat] * 20
    assert most_at_once == allowed


async def test_waiting_for_a_slot_does_not_use_up_the_deadline(site: Any) -> None:
    """A fetch that waits for two others to time out still has its own time."""
    site.pages = {"/slow": silence, "/cat.png": site.answer(site.cat)}
    sources = site.sources(max_fetches=1, fetch_timeout_s=0.2)
    paths = ("/slow", "/slow", "/cat.png")
    first, second, third = await asyncio.gather(
        *(sources.read(site.url(path)) for path in paths), return_exceptions=True
    )
    await sources.close()
    assert isinstance(first, ImageSourceError)
    assert isinstance(second, ImageSourceError)
    assert third == site.cat


async def test_a_slow_host_leaves_slots_to_others(site: Any) -> None:
    """With its slots all taken and more fetches waiting, a slow host does not hold up another."""
    site.pages = {"/slow": silence, "/cat.png": site.answer(site.cat)}
    sources = site.sources(max_fetches=3, max_fetches_per_host=2)
    slow = [
        asyncio.create_task(sources.read(site.url("/slow", host="slow.example"))) for _ in range(10)
    ]
    await site.waiting.get()
    await site.waiting.get()
    assert await sources.read(site.url("/cat.png", host="cat.example")) == site.cat
    assert not any(task.done() for task in slow)
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    await sources.close()


async def test_a_cancelled_fetch_gives_its_slot_back(site: Any) -> None:
    """After as many cancelled fetches as there are slots, the next one still works."""
    site.pages = {"/slow": silence, "/cat.png": site.answer(site.cat)}
    sources = site.sources(max_fetches=2)
    tasks = [asyncio.create_task(sources.read(site.url("/slow"))) for _ in range(4)]
    await site.waiting.get()
    await site.waiting.get()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)
    assert await sources.read(site.url("/cat.png")) == site.cat
    await sources.close()
