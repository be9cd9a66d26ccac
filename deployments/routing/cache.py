"""Rows of items seen before, by a digest of what a tower is sent, within a budget of bytes."""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

from cachetools import LRUCache

from deployments.model.output import Row
from deployments.model.tokenizer import TokenIds

Key = bytes  # digest of an item: its token ids or its encoded bytes
KEY_BYTES = 32  # no two items can be made to share a key, so no caller gets another's row
ENTRY_BYTES = 420  # of an entry beside its numbers: key, array header, links; measured 343 to 390
LARGE_BYTES = 256 * 1024  # more is hashed off the event loop


class RowCache:
    """Keeps full-width, un-normalised rows, from which any `dimensions` and encoding derives.

    All of them come from the tower that was heard last: when another one is heard, they go.

    Args:
        max_bytes: what the entries may take; 0 keeps none.

    Attributes:
        fingerprint: of the tower that was heard last; None before any was.
    """

    def __init__(self, max_bytes: int) -> None:
        self.fingerprint: str | None = None
        self._rows: LRUCache[Key, Row] = LRUCache(max_bytes, getsizeof=_entry_bytes)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def held_bytes(self) -> int:
        """What the entries take."""
        return int(self._rows.currsize)

    def heard(self, fingerprint: str) -> None:
        """Note which tower answers; rows of any other are dropped."""
        if fingerprint != self.fingerprint:
            self._rows.clear()
            self.fingerprint = fingerprint

    def get(self, key: Key) -> Row | None:
        """Return the row of a key and count it as used, None where there is none."""
        row: Row | None = self._rows.get(key)
        return row

    def put(self, key: Key, row: Row, fingerprint: str) -> None:
        """Keep a copy of a row; the least recently used ones leave as the budget asks."""
        # The answer of a replica that is being replaced may come after that of its successor.
        if fingerprint == self.fingerprint and _entry_bytes(row) <= self._rows.maxsize:
            self._rows[key] = row.copy()  # a view would keep the whole answer alive


def _entry_bytes(row: Row) -> int:
    return row.nbytes + ENTRY_BYTES


async def digests(items: Sequence[TokenIds] | Sequence[bytes]) -> list[Key]:
    """Return a key for each item."""
    if sum(map(_size_bytes, items)) <= LARGE_BYTES:
        return _digests(items)
    return await asyncio.to_thread(_digests, items)


def _digests(items: Sequence[TokenIds] | Sequence[bytes]) -> list[Key]:
    # Any: an array is a buffer, which NumPy's types do not say on Python 3.11.
    buffers: dict[int, Any] = {id(item): item for item in items}  # one image in many places once
    keys = {x: hashlib.blake2b(y, digest_size=KEY_BYTES).digest() for x, y in buffers.items()}
    return [keys[id(item)] for item in items]


def _size_bytes(item: TokenIds | bytes) -> int:
    return len(item) if isinstance(item, bytes) else item.nbytes
