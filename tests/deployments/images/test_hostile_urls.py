"""A corpus of hostile URLs, and names whose addresses change: nothing inside is ever reached."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

CORPUS = json.loads((Path(__file__).parent / "hostile_urls.json").read_text(encoding="ascii"))
HOSTILE_URLS = [
    pytest.param(url, id=f"{group.replace(' ', '_')}-{number}")
    for group, urls in CORPUS.items()
    for number, url in enumerate(urls)
]
INSIDE, OUTSIDE = "127.0.0.1", "127.0.0.2"


def test_the_corpus_is_large() -> None:
    """The corpus holds at least 150 different URLs."""
    urls = [url for urls in CORPUS.values() for url in urls]
    assert len(set(urls)) == len(urls) >= 150


@pytest.mark.parametrize("url", HOSTILE_URLS)
async def test_a_hostile_url_opens_no_connection(network: Any, url: str) -> None:
    """No spelling of an inside address, and no name that leads to one, opens a connection."""
    url = url.replace("{port}", str(network.port))
    answer = await network.attempt(url, [INSIDE])
    assert isinstance(answer, str)
    assert "secret" not in answer
    assert network.connections == []
    assert network.reached_inside == []


@pytest.mark.parametrize("url", HOSTILE_URLS)
async def test_a_redirect_to_a_hostile_url_stays_outside(network: Any, url: str) -> None:
    """An allowed host that redirects to a hostile URL reaches nobody but itself."""
    network.location = url.replace("{port}", str(network.port)).encode()
    start = f"http://{OUTSIDE}:{network.port}/start"
    answer = await network.attempt(start, [INSIDE])
    assert isinstance(answer, str)
    assert set(network.connections) == {OUTSIDE}
    assert network.reached_inside == []


@pytest.mark.usefixtures("guard_off")
async def test_without_the_guard_the_corpus_does_connect(network: Any) -> None:
    """Negative control: with the address check off, over 100 URLs of the corpus connect."""
    connecting, answers = 0, []
    for urls in CORPUS.values():
        for url in urls:
            before = len(network.connections)
            target = url.replace("{port}", str(network.port))
            answers.append(await network.attempt(target, [INSIDE]))
            connecting += len(network.connections) > before
    assert connecting > 100
    assert answers.count(b"secret") > 20
    assert len(network.reached_inside) > 20


async def test_a_name_that_changes_between_lookups_stays_outside(network: Any) -> None:
    """DNS rebinding: the first look-up is public, the next one leads inside and is refused."""
    network.location = b"/again"
    answer = await network.attempt(f"http://cat.example:{network.port}/", [OUTSIDE], [INSIDE])
    assert answer == (
        f"the image http://cat.example:{network.port}/ cannot be downloaded: after redirect 1, "
        "its host has no address that may be fetched from (only public ones may)"
    )
    assert network.resolver.names == ["cat.example", "cat.example", "closed"]
    assert network.connections == [OUTSIDE]
    assert network.reached_inside == []


@pytest.mark.usefixtures("guard_off")
async def test_without_the_guard_the_changed_name_leads_inside(network: Any) -> None:
    """Negative control: with the check off, the same change of address reads the secret."""
    network.location = b"/again"
    answer = await network.attempt(f"http://cat.example:{network.port}/", [OUTSIDE], [INSIDE])
    assert answer == b"secret"
    assert network.connections == [OUTSIDE, INSIDE]


async def test_one_connection_takes_one_lookup(network: Any) -> None:
    """The connection goes to the address that was checked, not to what a second look-up says."""
    answer = await network.attempt(f"http://cat.example:{network.port}/", ["8.8.8.8"], [INSIDE])
    assert "does not accept connections" in str(answer)
    assert network.resolver.names == ["cat.example", "closed"]
    assert network.connections == ["8.8.8.8"]


# Pieces at which URL parsers, name look-ups and decoders disagree.
PIECES = [
    *("http://", "https://", "//", "s3://open/", "file:///", "data:image/png;base64,"),
    *("127.0.0.1", "localhost", "[::1]", "[::ffff:", "0x7f", "0177", "1", "2130706433", "QUJD"),
    *("fe80::", "%25eth0", "64:ff9b::", ":80", ":99999", "xn--", "%00", "%2e", "a" * 64, "a" * 300),
    *"[]@:/\\?#%.-_=;|+ \x00\n\t\ud800\u00ad\u00e9\u2028\u202e\u2100\u2460\u3000\u3002\uff11",
]


@pytest.mark.parametrize("seed", range(8))
async def test_no_string_leads_to_another_kind_of_error(network: Any, seed: int) -> None:
    """Random joins of such pieces give an image error that can be sent on, and no connection."""
    random = Random(seed)
    for _ in range(100):
        scheme = random.choice(["http://", "https://", ""])
        source = scheme + "".join(random.choices(PIECES, k=random.randint(1, 8)))
        answer = await network.attempt(source, [INSIDE])
        if isinstance(answer, str):
            assert len(answer.encode()) < 400
            assert answer.isprintable()
    assert network.connections == []
