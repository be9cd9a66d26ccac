"""API keys: who may call, in which lane, and how much."""

import hashlib
import hmac
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, NamedTuple

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from deployments.checked import Frozen, PositiveInt
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
from deployments.messages import Lane
from serve_app.api.leases import Ask, Rate
from serve_app.api.slots import Slots

logger = logging.getLogger("ray.serve")

BUSY_RETRY_S = 1.0  # asked for when a key has too many requests under way


class ApiKey(Frozen):
    """One entry of the keys file.

    Attributes:
        name: for messages; the key itself is not kept.
        sha256: of the key, in hexadecimal: `printf %s KEY | sha256sum`.
        lane: `bulk` keeps its requests out of the interactive lane.
        requests_per_minute: refilled evenly; a burst may use a whole minute's. Of all Routers.
        max_concurrent_requests: requests under way at once, of all Routers. Where they shift from
            one to another, some below it may be refused for half a second.
        max_items_per_request: below the server's own limit.
    """

    name: Annotated[str, Field(min_length=1)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    lane: Lane = "interactive"
    requests_per_minute: PositiveInt | None = None
    max_concurrent_requests: PositiveInt | None = None
    max_items_per_request: PositiveInt | None = None


KEYS = TypeAdapter(tuple[ApiKey, ...])
ANYONE = ApiKey(name="anyone", sha256="0" * 64)


class Allowance(NamedTuple):
    """What this Router has of a key's limits."""

    rate: Rate
    slots: Slots


class KeyRing:
    """The keys that a server knows; those of a file are read again when the file changes.

    Args:
        config: the application's configuration.
        environment: where `api_keys_variable` is looked up.
        clock: monotonic seconds.
        ask: for leases of a key's limits; without it this Router is taken to be the only one.
        on_alone: called for each request let in while no leases come.

    Raises:
        ServiceError: the file or the variable cannot be used.
    """

    def __init__(
        self,
        config: AppConfig,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
        ask: Ask | None = None,
        on_alone: Callable[[], None] = lambda: None,
    ) -> None:
        self._ask, self._on_alone, self._clock = ask, on_alone, clock
        self._open = not config.asks_for_keys
        self._fixed = [*_configured(config), *_from_variable(config, environment)]
        self._file = Path(config.api_keys_file) if config.api_keys_file else None
        self._version: tuple[int, int] | None = None
        self._filed: tuple[ApiKey, ...] = ()
        self._allowances: dict[str, Allowance] = {}
        if self._file is not None:
            self._filed = read_keys(self._file)
            self._version = _version(self._file)

    def find(self, authorization: str, api_key: str = "") -> ApiKey:
        """Return the key that an Authorization header carries, or without one Azure's `api-key`.

        Every key is compared, each in constant time, so that the time taken says nothing.

        Raises:
            UnauthorizedError: no key, not in the form `Bearer KEY`, or not a known one.
        """
        if self._open:
            return ANYONE
        if not authorization and api_key.strip():
            authorization = f"Bearer {api_key}"
        scheme, _, given = authorization.partition(" ")
        if not authorization:
            raise MissingKeyError("send an API key as 'Authorization: Bearer KEY'")
        if scheme.lower() != "bearer" or not given.strip():
            raise KeyFormatError("the Authorization header must have the form 'Bearer KEY'")
        digest = digest_of(given.strip())
        self._reload()
        found = None
        for key in (*self._fixed, *self._filed):
            if hmac.compare_digest(digest, key.sha256):
                found = key
        if found is None:
            raise UnauthorizedError("this API key is not known")
        return found

    def of(self, sha256: str) -> ApiKey | None:
        """Return the key of a digest, if it is known still."""
        if self._open:
            return ANYONE
        self._reload()
        return next((x for x in (*self._fixed, *self._filed) if x.sha256 == sha256), None)

    @asynccontextmanager
    async def admit(self, key: ApiKey, num_items: int) -> AsyncIterator[None]:
        """Count a request against its key's limits for the length of the block.

        Raises:
            RequestTooLargeError: more items than the key may send at once.
            OverloadedError: as many requests under way as the key may have.
            RateLimitError: the key's requests of this minute are used up.
        """
        most = key.max_items_per_request
        if most is not None and num_items > most:
            raise RequestTooLargeError(
                f"{num_items:,} items; this API key may send {most:,} in one request: split it"
            )
        allowance = self._allowances.get(key.sha256)
        if allowance is None:
            shares = self._ask, self._on_alone, self._clock
            allowance = Allowance(Rate(*shares), Slots(*shares))
            self._allowances[key.sha256] = allowance
        most = key.max_concurrent_requests
        if most is not None and not await allowance.slots.take(key.sha256, most):
            raise OverloadedError(
                f"this API key may have {most} requests under way at once; retry in "
                f"{BUSY_RETRY_S:g} s",
                BUSY_RETRY_S,
            )
        try:
            if key.requests_per_minute is not None:
                wait_s = await allowance.rate.take(key.sha256, key.requests_per_minute)
                if wait_s:
                    raise RateLimitError(
                        f"this API key may send {key.requests_per_minute} requests a minute; "
                        f"retry in {wait_s:.1f} s",
                        wait_s,
                    )
            yield
        finally:
            if most is not None:
                allowance.slots.free()

    def _reload(self) -> None:
        """Read the file again if it has changed; a broken one leaves the keys as they are."""
        if self._file is None or (version := _version(self._file)) == self._version:
            return
        self._version = version
        try:
            self._filed = read_keys(self._file)
        except ServiceError as error:
            logger.error("keeping the API keys read before: %s", error)


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Read a keys file: a YAML list of the fields of `ApiKey`.

    Raises:
        ServiceError: unreadable, or not of that form; the message quotes no value.
    """
    try:
        return KEYS.validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        places = [".".join(map(str, fault["loc"])) for fault in error.errors()]
        reason = f"not a list of API keys: wrong at {', '.join(places) or 'the top'}"
    except OSError as error:
        reason = str(error.strerror)
    except (yaml.YAMLError, UnicodeDecodeError):
        reason = "not YAML in UTF-8"
    raise ServiceError(f"the API keys file {path.name} cannot be used: {reason}")


def digest_of(key: str) -> str:
    """Return what a keys file holds in place of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def _configured(config: AppConfig) -> Iterator[ApiKey]:
    for number, key in enumerate(config.api_keys):
        yield ApiKey(name=f"api_keys[{number}]", sha256=digest_of(key.get_secret_value()))


def _from_variable(config: AppConfig, environment: Mapping[str, str]) -> Iterator[ApiKey]:
    name = config.api_keys_variable
    if not name:
        return
    keys = [key.strip() for key in environment.get(name, "").split(",") if key.strip()]
    if not keys:
        raise ServiceError(f"the environment variable {name} holds no API key")
    for number, key in enumerate(keys):
        yield ApiKey(name=f"{name}[{number}]", sha256=digest_of(key))


def _version(path: Path) -> tuple[int, int] | None:
    """Return what changes with a file's contents."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
