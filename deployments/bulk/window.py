"""How many blocks are under way at once: what bounds memory, and what a kill can cost."""

import asyncio

import ray


class Window:
    """Lets blocks in while fewer than `size` are unfinished; runs as a Ray actor.

    Ray Data bounds what lies between stages by memory alone, so that a fast tower could run far
    ahead of a slow one, and all of that would be lost with the driver.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._blocks: set[int] = set()
        self._changed = asyncio.Condition()

    @ray.method
    async def enter(self, number: int) -> None:
        """Wait for a place; a block that is read again after a lost worker still has its own."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: number in self._blocks or len(self._blocks) < self._size
            )
            self._blocks.add(number)

    @ray.method
    async def leave(self, number: int) -> None:
        """Give the place of a finished block to another."""
        async with self._changed:
            self._blocks.discard(number)
            self._changed.notify_all()
