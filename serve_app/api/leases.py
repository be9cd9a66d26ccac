"""Rates of API keys that hold for all Routers together.

One actor beside the Routers keeps the books and hands out leases: a second's worth of a key's
requests at a time, so that few requests need a call. Without it each Router goes on with its share.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

logger = logging.getLogger("ray.serve")

BOOKS = "key_rates"
"""The name of the actor."""
LEASE_S = 2.0  # for so long a Router may use what it has leased
HEARD_S = 10.0  # a Router that has not asked for so long has no share
CALL_TIMEOUT_S = 0.5
RETRY_S = 1.0  # after a call that failed


class Lease(NamedTuple):
    """What a Router gets.

    Attributes:
        requests: it may let in; 0 where there are none.
        wait_s: until there is one.
        num_routers: that ask for leases.
    """

    requests: int
    wait_s: float
    num_routers: int


class Bucket:
    """Requests of a key, refilled evenly up to a minute's; full at first, or empty at a time."""

    def __init__(self, empty_s: float = float("-inf")) -> None:
        self._left = 0.0
        self._seen_s = empty_s

    def take(self, per_minute: float, wanted: int, now_s: float) -> tuple[int, float]:
        """Take up to so many; return how many, or 0 and the seconds until there is one."""
        self._left = min(per_minute, self._left + (now_s - self._seen_s) * per_minute / 60)
        self._seen_s = now_s
        if self._left < 1:
            return 0, (1 - self._left) * 60 / per_minute
        taken = min(int(self._left), wanted)
        self._left -= taken
        return taken, 0.0


class Books:
    """What all Routers have taken of each key's minute; one actor, and nothing else is in it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}
        self._heard: dict[str, float] = {}

    def lease(self, router: str, key: str, per_minute: int) -> Lease:
        """Give a Router up to a second's worth of a key's requests."""
        now_s = self._clock()
        self._heard[router] = now_s
        self._heard = {name: at for name, at in self._heard.items() if at > now_s - HEARD_S}
        bucket = self._buckets.setdefault(key, Bucket())
        requests, wait_s = bucket.take(per_minute, max(per_minute // 60, 1), now_s)
        return Lease(requests, wait_s, len(self._heard))


class Ask(Protocol):
    """What asks the books for a lease."""

    def __call__(self, key: str, per_minute: int) -> Awaitable[Lease]:
        """Return a lease of a key's requests."""
        ...


class Rate:
    """One key's requests in one Router.

    Args:
        ask: the books; None where this Router is alone.
        on_alone: called for each request that is let in by this Router's share alone.
        clock: monotonic seconds.
    """

    def __init__(
        self, ask: Ask | None, on_alone: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        self._ask, self._on_alone, self._clock = ask, on_alone, clock
        self._own = Bucket()
        self._left, self._until_s = 0, float("-inf")
        self._full_until_s = self._alone_until_s = float("-inf")
        self._num_routers = 1
        self._asking = asyncio.Lock()

    async def take(self, key: str, per_minute: int) -> float:
        """Take one request; return 0, or the seconds until there is one."""
        now_s = self._clock()
        if self._ask is None:
            return self._own.take(per_minute, 1, now_s)[1]
        async with self._asking:
            now_s = self._clock()
            if self._full_until_s > now_s:
                return self._full_until_s - now_s
            if not (self._left and now_s < self._until_s) and self._alone_until_s <= now_s:
                await self._renew(self._ask, key, per_minute)
                now_s = self._clock()
            if self._alone_until_s > now_s:
                return self._take_alone(per_minute, now_s)
            if self._left:
                self._left -= 1
                return 0.0
            return max(self._full_until_s - now_s, 0.001)

    def _take_alone(self, per_minute: int, now_s: float) -> float:
        wait_s = self._own.take(per_minute / self._num_routers, 1, now_s)[1]
        if not wait_s:
            self._on_alone()
        return wait_s

    async def _renew(self, ask: Ask, key: str, per_minute: int) -> None:
        try:
            lease = await asyncio.wait_for(ask(key, per_minute), CALL_TIMEOUT_S)
        except Exception as error:  # noqa: BLE001 - whatever ails the books, the Routers go on
            logger.warning("no lease of an API key's requests, using a share: %r", error)
            now_s = self._clock()
            if self._alone_until_s < now_s - 2 * RETRY_S:
                self._own = Bucket(now_s)  # this minute's requests may all have been taken
            self._left, self._alone_until_s = 0, now_s + RETRY_S
            return
        now_s = self._clock()
        self._left, self._until_s = lease.requests, now_s + LEASE_S
        self._full_until_s = now_s + lease.wait_s
        self._num_routers = lease.num_routers


def ask_actor() -> Ask:
    """Return what asks the actor beside this deployment, for one Router; found anew if lost."""
    handle, router = None, uuid.uuid4().hex

    async def ask(key: str, per_minute: int) -> Lease:
        nonlocal handle
        from ray import serve

        try:
            handle = handle or serve.get_deployment_actor(BOOKS)
            lease: Lease = await handle.lease.remote(router, key, per_minute)
        except Exception:
            handle = None
            raise
        return lease

    return ask
