"""Identical items are computed once: of one request, in flight at the same time, or seen before.

Items are the same where their token ids or encoded bytes are. Nobody waits for another's work that
costs more than its own, nor fails because of it: where the other caller leaves or fails, or its
work takes long, perhaps on a machine that is gone, the item is computed again.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import numpy as np

from deployments.messages import Lane, TowerRows
from deployments.model.errors import InputError
from deployments.model.output import Row
from deployments.model.tokenizer import TokenIds
from deployments.routing.cache import RowCache
from deployments.routing.dispatch import Piece

T = TypeVar("T", TokenIds, bytes)

Key = bytes  # digest of what a tower would be sent
KEY_BYTES = 32  # no two contents can be made to share a key, so no caller gets another's row
LARGE_BYTES = 256 * 1024  # more is hashed off the event loop
FOLLOW_S = 2.0  # after the begin of a piece, for which others follow it


async def digests(contents: Sequence[TokenIds] | Sequence[bytes]) -> list[Key]:
    """Return a key for each content."""
    if sum(map(_size_bytes, contents)) <= LARGE_BYTES:
        return _digests(contents)
    return await asyncio.to_thread(_digests, contents)


def _digests(contents: Sequence[TokenIds] | Sequence[bytes]) -> list[Key]:
    # Any: an array is a buffer, which NumPy's types do not say on Python 3.11.
    buffers: Sequence[Any] = contents
    return [hashlib.blake2b(buffer, digest_size=KEY_BYTES).digest() for buffer in buffers]


def _size_bytes(content: TokenIds | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.nbytes


@dataclass
class Found(Generic[T]):
    """What a request need not compute, and what is missing.

    Attributes:
        cached: rows seen before.
        followed: pieces of other requests, with the keys wanted of each and their rows in it.
        missing: what is left to compute.
    """

    cached: dict[Key, Row] = field(default_factory=dict)
    followed: dict[Piece, list[tuple[Key, int]]] = field(default_factory=dict)
    missing: dict[Key, T] = field(default_factory=dict)


class Sharing:
    """What one tower has computed of late and what it is computing, by content.

    Args:
        cache_bytes: for rows seen before; 0 keeps none.
        on_reuse: told how many items were not computed, and why: `request`, `flight`, `cache`.
    """

    def __init__(self, cache_bytes: int, on_reuse: Callable[[str, int], None]) -> None:
        self._cache = RowCache(cache_bytes)
        self._on_reuse = on_reuse
        self._under_way: dict[Key, tuple[Piece, int]] = {}

    def look_up(
        self, items: Mapping[Key, T], patience: int, lane: Lane, fingerprint: str | None
    ) -> Found[T]:
        """Sort the items of a request into known, under way and missing.

        Args:
            items: each content once.
            patience: cost of another request whose work this one may wait for.
            lane: of the request; interactive work does not wait for bulk work.
            fingerprint: of the tower as it is now; None where that is not known, and then the
                cache is not asked.
        """
        found: Found[T] = Found()
        prefix = fingerprint.encode() if fingerprint and self._cache.max_bytes else None
        for key, content in items.items():
            row = self._cache.get(prefix + key) if prefix else None
            piece, index = self._under_way.get(key, (None, 0))
            if row is not None:
                found.cached[key] = row
            elif piece and piece.request_cost <= patience and _may_follow(piece, lane):
                found.followed.setdefault(piece, []).append((key, index))
            else:
                found.missing[key] = content
        self._count("cache", len(found.cached))
        self._count("flight", sum(map(len, found.followed.values())))
        return found

    def repeated(self, count: int) -> None:
        """Count items that occur again in their own request."""
        self._count("request", count)

    @contextmanager
    def leading(self, pieces: Sequence[Piece]) -> Iterator[None]:
        """Let other requests follow pieces for the length of the block."""
        try:
            for piece in pieces:
                for index, key in enumerate(piece.keys):
                    self._under_way[key] = piece, index  # the latest is the best to follow
            yield
        finally:
            for piece in pieces:
                self._forget(piece)
                if not piece.answer.done():
                    piece.answer.set_result(None)  # whoever follows computes for itself

    def landed(self, piece: Piece, answer: TowerRows, fingerprint: str) -> None:
        """Give a piece's rows to those who follow it, and to the cache."""
        self._forget(piece)
        piece.answer.set_result(answer)
        if self._cache.max_bytes:
            prefix = fingerprint.encode()
            for index, key in enumerate(piece.keys):
                if index not in answer.failures:
                    self._cache.put(prefix + key, answer.rows[index])

    def _forget(self, piece: Piece) -> None:
        for key in piece.keys:
            if self._under_way.get(key, (None, 0))[0] is piece:
                del self._under_way[key]

    def _count(self, how: str, count: int) -> None:
        if count:
            self._on_reuse(how, count)


def _may_follow(piece: Piece, lane: Lane) -> bool:
    return lane in ("bulk", piece.lane) and time.monotonic() < piece.begun_s + FOLLOW_S


async def follow(piece: Piece, wanted: Sequence[tuple[Key, int]]) -> tuple[list[Key], TowerRows]:
    """Wait for another request's piece; return what it answers of the items wanted.

    An item is left out where the other failed for a reason that is not the item's own, or takes
    more than `FOLLOW_S`.
    """
    answer = None
    with suppress(TimeoutError):
        async with asyncio.timeout(piece.begun_s + FOLLOW_S - time.monotonic()):
            answer = await asyncio.shield(piece.answer)
    if answer is None:
        return [], TowerRows(np.zeros((0, 0), np.float32))
    kept = [(key, i) for key, i in wanted if isinstance(answer.failures.get(i), InputError | None)]
    failures = {at: answer.failures[i] for at, (_, i) in enumerate(kept) if i in answer.failures}
    rows = answer.rows[[i for _, i in kept]]
    return [key for key, _ in kept], replace(answer, rows=rows, failures=failures)
