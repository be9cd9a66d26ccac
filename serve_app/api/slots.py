"""Requests of an API key under way at once, over all Routers.

A Router has some of a key's slots, which requests take and free without a call. It asks for more
when it has too few, and each half second gives back those that were not needed; each tenth of a
second while some Router lacks any. Until then a request may be refused there though a slot is free.
"""

import asyncio
from collections.abc import Callable

from serve_app.api.leases import Ask, Held, Share

KEPT_S, KEPT_SCARCE_S = 0.5, 0.1
"""Between two calls, while a Router has slots; the second while some Router lacks any."""


class Slots(Share):
    """One key's requests under way in one Router.

    Attributes:
        under_way: now.
    """

    def __init__(
        self, ask: Ask | None, on_alone: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        super().__init__(ask, on_alone, clock)
        self.under_way = 0
        self._limit = self._slots = self._most = self._waiting = 0
        self._is_scarce = False
        self._full_until_s = float("-inf")
        self._keeper: asyncio.Task[None] | None = None

    async def take(self, key: str, limit: int) -> bool:
        """Take a slot, to be freed after the request; return whether there was one."""
        self._limit = limit
        if self._ask is not None and self.under_way >= self._slots:
            self._waiting += 1
            try:
                async with self._asking:
                    await self._ask_for_more(key)
            finally:
                self._waiting -= 1
        if self.under_way >= self._allowed():
            return False
        if self._is_alone():
            self._on_alone()
        self.under_way += 1
        self._most = max(self._most, self.under_way)
        return True

    def free(self) -> None:
        """Give a slot back."""
        self.under_way -= 1

    def _allowed(self) -> int:
        if self._ask is None:
            return self._limit
        return max(self._limit // self._num_routers, 1) if self._is_alone() else self._slots

    async def _ask_for_more(self, key: str) -> None:
        if self.under_way < self._slots or self._full_until_s > self._clock():
            return  # another request has just asked
        if self._keeper is None:  # before the books are asked: who asks may leave meanwhile
            self._keeper = asyncio.create_task(self._keep(key))
        spare = 0 if self._is_scarce else 1 + self._slots // 4
        await self._hold(key, min(self.under_way + self._waiting + spare, self._limit))
        if self.under_way >= self._slots:
            self._full_until_s = self._clock() + KEPT_SCARCE_S

    async def _hold(self, key: str, wanted: int) -> None:
        self._slots = min(self._slots, wanted)  # what is given back is not used meanwhile
        state = self._limit, wanted, self.under_way, self._num_routers
        held = await self._told(Held, "hold", key, *state)
        if held is None:
            self._slots = 0  # others may be given them
        else:
            self._slots, self._is_scarce = held.slots, held.is_scarce

    async def _keep(self, key: str) -> None:
        """Tell the books what is needed still, until it is nothing."""
        try:
            has_some = True
            while has_some:
                await asyncio.sleep(KEPT_SCARCE_S if self._is_scarce else KEPT_S)
                async with self._asking:
                    await self._hold(key, max(self._most, self.under_way))
                    self._most = self.under_way
                has_some = self._slots > 0 or self.under_way > 0
        finally:
            self._keeper = None
