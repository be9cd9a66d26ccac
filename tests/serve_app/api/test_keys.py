"""API keys: who is let in, in which lane and how often."""

import hashlib
import logging
import os

import pytest
import yaml
from pydantic import SecretStr

from deployments.config import AppConfig
from deployments.errors import (
    KeyFormatError,
    MissingKeyError,
    OverloadedError,
    RateLimitError,
    RequestTooLargeError,
    ServiceError,
    UnauthorizedError,
)
from serve_app.api.keys import KeyRing


class Time:
    """A clock that stands still until it is moved."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def entry(name: str, key: str, **limits):
    return {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest(), **limits}


@pytest.fixture
def write(tmp_path):
    """A function that writes a keys file, each time with a later modification time."""
    path, version = tmp_path / "keys.yaml", iter(range(1, 100))

    def write(entries) -> str:
        path.write_text(entries if isinstance(entries, str) else yaml.safe_dump(entries))
        os.utime(path, ns=(stamp := next(version) * 10**9, stamp))
        return str(path)

    return write


def ring(path: str, clock: Time | None = None) -> KeyRing:
    return KeyRing(AppConfig(api_keys_file=path), {}, clock or Time())


def test_without_keys_everybody_may_call():
    """Keys are off by default."""
    assert KeyRing(AppConfig(), {}).find("").name == "anyone"


def test_keys_come_from_the_configuration_a_file_and_the_environment(write):
    """Each source lets its keys in, under their names; others stay out."""
    config = AppConfig(
        api_keys=(SecretStr("one"),),
        api_keys_file=write([entry("search", "two")]),
        api_keys_variable="KEYS",
    )
    keys = KeyRing(config, {"KEYS": "three, four"})
    names = [keys.find(f"Bearer {key}").name for key in ("one", "two", "three", "four")]
    assert names == ["api_keys[0]", "search", "KEYS[0]", "KEYS[1]"]
    with pytest.raises(UnauthorizedError):
        keys.find("Bearer five")


@pytest.mark.parametrize(
    ("header", "error"),
    [
        ("", MissingKeyError),
        ("Bearer", KeyFormatError),
        ("Bearer  ", KeyFormatError),
        ("Basic two", KeyFormatError),
        ("two", KeyFormatError),
        ("Bearer tw", UnauthorizedError),
        ("Bearer two2", UnauthorizedError),
        ("Bearer ключ", UnauthorizedError),
    ],
)
def test_bad_headers_are_refused_without_repeating_them(write, header, error):
    """The error's type says what is wrong; its text holds nothing of the header."""
    with pytest.raises(UnauthorizedError) as raised:
        ring(write([entry("search", "two")])).find(header)
    assert type(raised.value) is error
    assert "tw" not in str(raised.value)


def test_the_file_is_read_again_when_it_changes(write, caplog):
    """New keys work and removed ones stop; a broken file leaves the keys as they were."""
    keys = ring(write([entry("a", "one")]))
    keys.find("Bearer one")
    write([entry("b", "two")])
    assert keys.find("Bearer two").name == "b"
    with pytest.raises(UnauthorizedError):
        keys.find("Bearer one")
    with caplog.at_level(logging.ERROR, "ray.serve"):
        write([{"name": "c", "sha256": "a-key-pasted-by-mistake"}])
        assert keys.find("Bearer two").name == "b"
    assert "0.sha256" in caplog.text
    assert "pasted-by-mistake" not in caplog.text


@pytest.mark.parametrize("text", ["- {", "name: x", "[{name: x, key: secret}]", "\x00"])
def test_a_broken_file_lets_nobody_in_and_shows_no_secret(write, text):
    """A server does not start open because its keys cannot be read."""
    with pytest.raises(ServiceError, match=r"keys\.yaml") as error:
        ring(write(text))
    assert "secret" not in str(error.value)


def test_an_unset_variable_and_a_missing_file_let_nobody_in(tmp_path):
    """What was to hold the keys must hold some."""
    with pytest.raises(ServiceError, match="KEYS"):
        KeyRing(AppConfig(api_keys_variable="KEYS"), {})
    with pytest.raises(ServiceError, match=r"none\.yaml"):
        ring(str(tmp_path / "none.yaml"))


async def test_the_rate_of_a_key_refills_evenly(write):
    """Sixty a minute: a burst of sixty, then one each second; another key is not held up."""
    clock = Time()
    path = write([entry("a", "one", requests_per_minute=60), entry("b", "two")])
    keys = ring(path, clock)
    one, two = keys.find("Bearer one"), keys.find("Bearer two")

    async def send(key) -> None:
        async with keys.admit(key, 1):
            pass

    for _ in range(60):
        await send(one)
    with pytest.raises(RateLimitError) as error:
        await send(one)
    assert error.value.retry_after_s == pytest.approx(1)
    await send(two)
    clock.now_s += 1.01
    await send(one)
    with pytest.raises(RateLimitError):
        await send(one)


async def test_a_key_has_so_many_requests_under_way_and_so_many_items(write):
    """Further requests are refused until one ends, however it ends."""
    keys = ring(write([entry("a", "one", max_concurrent_requests=1, max_items_per_request=8)]))
    key = keys.find("Bearer one")
    with pytest.raises(RequestTooLargeError, match="9 items; this API key may send 8 in one"):
        async with keys.admit(key, 9):
            pass
    async with keys.admit(key, 8):
        with pytest.raises(OverloadedError, match="1 requests under way at once; retry in 1 s"):
            async with keys.admit(key, 1):
                pass
    with pytest.raises(KeyError):
        async with keys.admit(key, 1):
            raise KeyError
    async with keys.admit(key, 1):
        pass
