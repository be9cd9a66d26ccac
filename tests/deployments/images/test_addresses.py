"""The rules of the guard against server-side request forgery."""

import socket
from ipaddress import ip_address
from typing import Any

import pytest

from deployments.image_config import ImageConfig
from deployments.images.addresses import (
    AddressRules,
    GuardedResolver,
    RefusedError,
    SystemResolver,
    parse_url,
)

PUBLIC = ["8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001::200e"]
PUBLIC_TRANSLATED = ["::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]


@pytest.mark.parametrize("address", PUBLIC + PUBLIC_TRANSLATED)
def test_a_public_address_is_allowed(address: str) -> None:
    """Globally routable unicast passes, also where it is translated."""
    assert AddressRules(ImageConfig()).allows_text(address)


@pytest.mark.parametrize(
    ("address", "networks"),
    [
        ("10.1.2.3", ("10.0.0.0/8",)),
        ("::ffff:10.1.2.3", ("10.0.0.0/8",)),
        ("fd00::1", ("fd00::/8", "10.0.0.0/8")),
    ],
)
def test_a_network_can_be_allowed(address: str, networks: tuple[str, ...]) -> None:
    """`allow_networks` opens exactly the networks that it names."""
    assert not AddressRules(ImageConfig()).allows_text(address)
    rules = AddressRules(ImageConfig(allow_networks=networks))
    assert rules.allows_text(address)
    assert not rules.allows(ip_address("192.168.0.1"))
    assert not rules.allows(ip_address("fc00::1"))


@pytest.mark.parametrize("networks", [("10.0.0.1/8",), ("example.com",)])
def test_a_wrong_network_is_an_error_at_start(networks: tuple[str, ...]) -> None:
    """A network that is none stops the server instead of allowing nothing in silence."""
    with pytest.raises(ValueError, match=r"10\.0\.0\.1/8|example"):
        AddressRules(ImageConfig(allow_networks=networks))


@pytest.mark.parametrize("address", ["10.0.0.1", "127.1", "::1", "2606:4700::1111%lo", "a.example"])
def test_the_last_check_opens_no_socket(address: str) -> None:
    """Whatever the connector comes up with, no socket exists for a refused address."""
    rules = AddressRules(ImageConfig())
    with pytest.raises(PermissionError):
        rules.open_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, 80)))
    with rules.open_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("8.8.8.8", 80))) as opened:
        assert opened.family == socket.AF_INET


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://cats.example/a", None),
        ("https://img.cats.example./a", None),
        ("https://IMG.CATS.EXAMPLE/a", None),
        ("https://b\u00fccher.example/a", None),
        ("https://xn--bcher-kva.example/a", None),
        ("https://evilcats.example/a", "not on the allow list"),
        ("https://cats.example.evil.example/a", "not on the allow list"),
        ("https://8.8.8.8/a", "not on the allow list"),
        ("https://private.cats.example/a", "on the deny list"),
        ("https://deep.PRIVATE.cats.example./a", "on the deny list"),
    ],
)
def test_host_lists_cover_subdomains(url: str, reason: str | None) -> None:
    """A listed host stands for itself and its subdomains in any spelling; denial goes first."""
    rules = AddressRules(
        ImageConfig(
            allow_hosts=("cats.example", "B\u00dcCHER.example"),
            deny_hosts=(".private.cats.example",),
        )
    )
    if reason is None:
        assert rules.check(parse_url(url)) == parse_url(url)
    else:
        with pytest.raises(RefusedError, match=reason):
            rules.check(parse_url(url))


def test_an_allowed_host_may_not_lead_inside() -> None:
    """The allow list of hosts does not lift the check of addresses."""
    rules = AddressRules(ImageConfig(allow_hosts=("127.0.0.1", "10.0.0.1")))
    with pytest.raises(RefusedError, match="no address that may be fetched from"):
        rules.check(parse_url("http://127.0.0.1/"))


def test_without_lists_every_public_host_passes() -> None:
    """Names and public addresses in their standard spelling need no list."""
    rules = AddressRules(ImageConfig())
    for url in ("http://cat.example/", "https://8.8.8.8/", "https://[2606:4700::1111]:443/x?y=z"):
        assert rules.check(parse_url(url)) == parse_url(url)


def test_a_long_url_is_refused() -> None:
    """A URL over the limit is refused, one at the limit is parsed."""
    url = "http://cat.example/".ljust(8192, "a")
    assert parse_url(url).host == "cat.example"
    with pytest.raises(RefusedError, match="8,192 characters"):
        parse_url(url + "a")


@pytest.mark.parametrize(
    "answer",
    [
        [],
        ["127.0.0.1"],
        ["8.8.8.8", "10.0.0.1"],
        ["8.8.8.8", "fd00::1"],
        ["127.1"],
        ["cat.example"],
    ],
)
async def test_one_bad_address_refuses_the_name(fake_resolver: Any, answer: list[str]) -> None:
    """Every address of a name is checked, and an unknown name is refused in the same words."""
    guarded = GuardedResolver(AddressRules(ImageConfig()), fake_resolver(answer))
    with pytest.raises(RefusedError, match="its host has no address that may be fetched from"):
        await guarded.resolve("cat.example", 80)


async def test_checked_addresses_are_handed_on(fake_resolver: Any) -> None:
    """All addresses of a public name reach the connector, from one look-up, with its port."""
    resolver = fake_resolver(["8.8.8.8", "2606:4700::1111"])
    found = await GuardedResolver(AddressRules(ImageConfig()), resolver).resolve("cat.example", 443)
    assert [(result["host"], result["port"]) for result in found] == [
        ("8.8.8.8", 443),
        ("2606:4700::1111", 443),
    ]
    assert resolver.names == ["cat.example"]


async def test_the_system_resolver_agrees_with_the_system() -> None:
    """The look-up on threads returns what getaddrinfo does."""
    resolver = SystemResolver(num_threads=1)
    found = await resolver.resolve("localhost", 80)
    await resolver.close()
    expected = socket.getaddrinfo(
        "localhost", 80, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
    )
    assert [(result["host"], result["port"], result["family"]) for result in found] == [
        (*address[:2], family) for family, *_, address in expected
    ]
