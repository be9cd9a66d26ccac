"""Limits of API keys that hold for all Routers together.

One actor beside the Routers keeps the books and hands out leases: of a rate a second's worth of
requests at a time, whose rest comes back with the next call; of requests under way so many slots.
So few requests need a call. Without it each Router goes on with its share.
"""

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

logger = logging.getLogger("ray.serve")

BOOKS = "key_rates"
"""The name of the actor."""
LEASE_S = 2.0  # for so long a Router may use what it has leased
HEARD_S = 10.0  # a Router that has not asked for so long has no share
SLOTS_S = 4.0  # and after this no slots; they are asked for anew each half second
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


class Held(NamedTuple):
    """What a Router may have under way of a key's requests.

    Attributes:
        slots: at once, until it asks anew.
        is_scarce: some Router lacked slots of late: those that lie idle are wanted soon.
        num_routers: that ask for leases.
    """

    slots: int
    is_scarce: bool
    num_routers: int


class Bucket:
    """Requests of a key, refilled evenly up to a minute's, but one at least.

    It is full at first, or empty at a time.
    """

    def __init__(self, empty_s: float = float("-inf")) -> None:
        self._left = 0.0
        self._seen_s = empty_s

    def take(self, per_minute: float, wanted: int, now_s: float) -> tuple[int, float]:
        """Take up to so many; return how many, or 0 and the seconds until there is one."""
        most = max(per_minute, 1.0)
        self._left = min(most, self._left + (now_s - self._seen_s) * per_minute / 60)
        self._seen_s = now_s
        if self._left < 1:
            return 0, (1 - self._left) * 60 / per_minute
        taken = min(int(self._left), wanted)
        self._left -= taken
        return taken, 0.0

    def give_back(self, unused: int) -> None:
        """Put back what was taken and not used."""
        self._left += unused


class Books:
    """What all Routers have taken of each key's minute; one actor, and nothing else is in it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun_s = clock()
        self._buckets: dict[str, Bucket] = {}
        self._heard: dict[str, float] = {}
        self._slots: dict[str, dict[str, tuple[int, float]]] = {}  # by key and Router; since when
        self._short_s: dict[str, float] = {}

    def lease(
        self, router: str, key: str, per_minute: int, unused: int = 0, had_some: bool = False
    ) -> Lease:
        """Give a Router up to a second's worth of a key's requests, for its last lease's rest.

        Where it had some of these before and these books do not know the key, they are new: what
        is left of the key's minute is not known, and taken to be nothing.
        """
        now_s = self._hear(router)
        if key not in self._buckets:
            self._buckets[key] = Bucket(now_s) if had_some else Bucket()
        bucket = self._buckets[key]
        bucket.give_back(unused)
        requests, wait_s = bucket.take(per_minute, max(per_minute // 60, 1), now_s)
        return Lease(requests, wait_s, len(self._heard))

    def hold(
        self, router: str, key: str, limit: int, wanted: int, under_way: int, num_routers: int
    ) -> Held:
        """Let a Router have so many of a key's slots in place of what it has, or what is left.

        Books that have just begun may not have heard of all slots: until then it is its share at
        most, where it knew of so many Routers.
        """
        now_s = self._hear(router)
        slots = self._slots.setdefault(key, {})
        slots[router] = under_way, now_s
        for name in [name for name, (_, at) in slots.items() if at <= now_s - SLOTS_S]:
            del slots[name]
        left = limit - sum(number for name, (number, _) in slots.items() if name != router)
        if now_s < self._begun_s + SLOTS_S:
            left = min(left, max(limit // max(num_routers, len(self._heard)), 1))
        given = max(min(wanted, left), 0)
        slots[router] = max(given, under_way), now_s
        if given < wanted:
            self._short_s[key] = now_s
        is_scarce = self._short_s.get(key, float("-inf")) > now_s - HEARD_S
        return Held(given, is_scarce, len(self._heard))

    def _hear(self, router: str) -> float:
        now_s = self._clock()
        self._heard[router] = now_s
        self._heard = {name: at for name, at in self._heard.items() if at > now_s - HEARD_S}
        return now_s


T = TypeVar("T", Lease, Held)
Ask = Callable[..., Awaitable[tuple[float, ...]]]
"""Calls a method of the books for this Router: its name, a key, what else `Books` says."""


class Share:
    """What one Router has of one limit of one key.

    Args:
        ask: the books; None where this Router is alone.
        on_alone: called for each request that is let in by this Router's share alone.
        clock: monotonic seconds.
    """

    def __init__(
        self, ask: Ask | None, on_alone: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        self._ask, self._on_alone, self._clock = ask, on_alone, clock
        self._alone_until_s = float("-inf")
        self._num_routers = 1
        self._asking = asyncio.Lock()

    def _is_alone(self) -> bool:
        """Tell whether the books have not answered of late."""
        return self._alone_until_s > self._clock()

    async def _told(self, kind: type[T], method: str, *arguments: str | int) -> T | None:
        """Return what the books say; None where they do not, and no other call for a second."""
        if self._ask is None or self._is_alone():
            return None
        try:
            # Serve pickles the actor by value, module and all: its classes are not these.
            asked = asyncio.wait_for(self._ask(method, *arguments), CALL_TIMEOUT_S)
            told = kind._make(await asked)
        except Exception as error:  # noqa: BLE001 - whatever ails the books, the Routers go on
            logger.warning("no lease of an API key's requests, using a share: %r", error)
            self._alone_until_s = self._clock() + RETRY_S
            return None
        self._num_routers = told.num_routers
        return told


class Rate(Share):
    """One key's requests over time in one Router."""

    def __init__(
        self, ask: Ask | None, on_alone: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        super().__init__(ask, on_alone, clock)
        self._own = Bucket()
        self._left, self._until_s = 0, float("-inf")
        self._full_until_s = float("-inf")

    async def take(self, key: str, per_minute: int) -> float:
        """Take one request; return 0, or the seconds until there is one."""
        now_s = self._clock()
        if self._ask is None:
            return self._own.take(per_minute, 1, now_s)[1]
        async with self._asking:
            now_s = self._clock()
            if self._full_until_s > now_s:
                return self._full_until_s - now_s
            if not (self._left and now_s < self._until_s) and not self._is_alone():
                await self._renew(key, per_minute)
                now_s = self._clock()
            if self._is_alone():
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

    async def _renew(self, key: str, per_minute: int) -> None:
        alone_until_s = self._alone_until_s
        unused, self._left = self._left, 0
        had_some = math.isfinite(self._until_s)
        lease = await self._told(Lease, "lease", key, per_minute, unused, had_some)
        now_s = self._clock()
        if lease is None:
            if alone_until_s < now_s - 2 * RETRY_S:
                self._own = Bucket(now_s)  # this minute's requests may all have been taken
            return
        self._left, self._until_s = lease.requests, now_s + LEASE_S
        self._full_until_s = now_s + lease.wait_s


def ask_actor() -> Ask:
    """Return what asks the actor beside this deployment, for one Router; found anew if lost."""
    router = uuid.uuid4().hex
    found: asyncio.Future[Any] | None = None  # Any: an actor's handle

    async def ask(method: str, *arguments: str | int) -> tuple[float, ...]:
        nonlocal found
        from ray import serve

        if found is None:  # a thread, and one of them: without a head node this takes a minute
            found = asyncio.ensure_future(asyncio.to_thread(serve.get_deployment_actor, BOOKS))
        try:
            handle = await asyncio.shield(found)
            told: tuple[float, ...] = await getattr(handle, method).remote(router, *arguments)
        except Exception:
            found = None
            raise
        return told

    return ask
