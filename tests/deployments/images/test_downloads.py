"""Downloads that succeed, redirects, and what errors say."""

import asyncio
import base64
from typing import Any
from urllib.parse import parse_qs

import pytest

from deployments.errors import ImageSourceError
from deployments.model.pictures.image import open_image

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


async def test_an_image_is_downloaded_unchanged(site: Any) -> None:
    """The body arrives byte for byte, by length, in chunks, or up to the connection's end."""
    cat = site.cat
    chunks = b"".join(
        b"%x\r\n%s\r\n" % (len(x), x) for x in (site.cat[:1], site.cat[1:1000], site.cat[1000:])
    )
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"

    async def until_closed(_: object, __: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + cat)
        writer.close()

    site.pages = {"/length": site.answer(site.cat), "/chunks": chunked, "/close": until_closed}
    for path in site.pages:
        assert await site.fetch(path) == site.cat
    open_image(site.cat)


async def test_the_request_names_the_host_and_asks_for_no_compression(site: Any) -> None:
    """The name stays in the Host header although the connection goes to a checked address."""
    site.pages["/a%20cat.png"] = site.answer(site.cat)
    sources = site.sources()
    assert await sources.read(f" HTTP://Cat.Example:{site.port}/a cat.png?x=1#top\n") == site.cat
    await sources.close()
    (request,) = site.requests
    assert request.startswith("GET /a%20cat.png?x=1 HTTP/1.1\r\n")
    assert f"\r\nHost: cat.example:{site.port}\r\n" in request
    assert "\r\nAccept-Encoding: identity\r\n" in request
    assert "Cookie" not in request
    assert "Authorization" not in request


async def test_connections_are_pooled(site: Any) -> None:
    """Ten images of one host one after the other take one connection; cookies are not kept."""
    site.pages["/cat.png"] = site.answer(site.cat, Set_Cookie="id=7")
    sources = site.sources()
    for _ in range(10):
        assert await sources.read(site.url("/cat.png", host="cat.example")) == site.cat
    await sources.close()
    assert site.num_connections == 1
    assert len(site.requests) == 10
    assert "id=7" not in "".join(site.requests)


async def test_proxies_of_the_environment_are_ignored(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy would connect to unchecked addresses in our place."""
    site.pages["/cat.png"] = site.answer(site.cat)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert await site.fetch() == site.cat


@pytest.mark.parametrize(
    "status",
    [
        "301 Moved Permanently",
        "302 Found",
        "303 See Other",
        "307 Temporary Redirect",
        "308 Permanent Redirect",
    ],
)
async def test_redirects_are_followed(site: Any, status: str) -> None:
    """Absolute, rooted and relative locations lead to the image."""
    site.pages = {
        "/start": site.redirect(site.url("/one"), status),
        "/one": site.redirect("/folder/two", status),
        "/folder/two": site.redirect("three?sig=a%2Fb%2B", status),
        "/folder/three": site.answer(site.cat),
    }
    assert await site.fetch("/start", max_redirects=3) == site.cat
    path, _, query = site.requests[-1].split()[1].partition("?")
    assert (path, parse_qs(query)) == ("/folder/three", {"sig": ["a/b+"]})


async def test_redirects_are_limited(site: Any) -> None:
    """One redirect more than the limit, and a loop, are refused after limit + 1 requests."""
    site.pages = {
        "/loop": site.redirect("/loop"),
        "/start": site.redirect("/end"),
        "/end": site.answer(site.cat),
    }
    assert "redirects more than 3 times" in await site.refusal("/loop", max_redirects=3)
    assert len(site.requests) == 4
    assert "redirects more than 0 times" in await site.refusal("/start", max_redirects=0)
    assert await site.fetch("/start", max_redirects=1) == site.cat


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://10.1.2.3:{port}/", "no address that may be fetched from"),
        ("http://169.254.169.254:{port}/latest", "no address that may be fetched from"),
        ("http://127.0.0.1:1/", "port is 1"),
        ("file:///etc/passwd", "names no host"),
        ("ftp://127.0.0.1:{port}/", "scheme is not http or https"),
        ("http://u:hunter2@127.0.0.1:{port}/", "user name or password"),
        ("http://[::1", "not a valid URL"),
        ("http://2130706433:{port}/", "no address that may be fetched from"),
        ("http://denied.example:{port}/", "deny list"),
    ],
)
async def test_a_redirect_is_checked_like_a_url(site: Any, location: str, reason: str) -> None:
    """Each hop obeys the same rules; the answer does not name where it led."""
    location = location.format(port=site.port)
    site.pages["/cat.png"] = site.redirect(location)
    message = await site.refusal(deny_hosts=("denied.example",))
    assert "after redirect 1, " in message
    assert reason in message
    for secret in ("10.1.2.3", "169.254", "hunter2", "passwd", "denied.example"):
        assert secret not in message
    assert len(site.requests) == 1


@pytest.mark.parametrize("status", ["204 No Content", "206 Partial Content", "304 Not Modified"])
async def test_other_successes_are_no_image(site: Any, status: str) -> None:
    """Only 200 brings a whole image."""
    site.pages["/cat.png"] = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()
    assert f"answered with status {status[:3]}" in await site.refusal()


@pytest.mark.parametrize("status", ["400 Bad", "401 No", "403 No", "404 Gone", "500 Oh", "302 Ho"])
async def test_a_failure_names_the_status(site: Any, status: str) -> None:
    """Errors of the host, and a redirect to nowhere, name its status and not its body."""
    site.pages["/cat.png"] = site.answer(b"secret", status)
    message = await site.refusal()
    assert message == (
        f"the image {site.url('/cat.png')} cannot be downloaded: "
        f"its host answered with status {status[:3]}"
    )


async def test_fetching_can_be_turned_off(site: Any) -> None:
    """One switch refuses every URL and leaves the other sources working."""
    site.pages["/cat.png"] = site.answer(site.cat)
    assert "images.fetch is false" in await site.refusal(fetch=False)
    assert site.num_connections == 0
    sources = site.sources(fetch=False)
    assert await sources.read(base64.b64encode(site.cat).decode()) == site.cat
    await sources.close()


async def test_messages_hold_no_secret_and_stay_short(site: Any) -> None:
    """User, password, query and fragment are left out of errors, long paths are cut."""
    path = f"/{'p' * 500}?X-Amz-Signature=hunter2#hunter2"
    site.pages[path.partition("?")[0]] = site.answer(b"hunter2", "403 Forbidden")
    message = await site.refusal(path)
    assert "status 403" in message
    sources = site.sources()
    with pytest.raises(ImageSourceError) as caught:
        await sources.read(f"http://user:hunter2@127.0.0.1:{site.port}{path}")
    await sources.close()
    for text in (message, str(caught.value)):
        assert "hunter2" not in text
        assert len(text) < 300
    assert caught.value.__cause__ is None
