"""Sends the pieces of a request to a tower and puts the rows in their places."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deployments.config import RouterConfig
from deployments.messages import ImageChunk, Lane, Terms, TextChunk, Timings, TowerRows
from deployments.model.errors import EmbeddingError
from deployments.model.tokenizer import TokenIds
from deployments.routing.admission import Hold
from deployments.routing.tower_client import TowerClient


@dataclass(frozen=True, eq=False)
class Piece:
    """A chunk on its way to a tower.

    Attributes:
        chunk: what the tower is sent.
        keys: names the item of each row.
        cost: in tokens or images.
        share: of a full chunk.
        request_cost: of all the pieces of its request.
        begun_s: when it was cut, by the monotonic clock.
        answer: what the tower answered, for other requests with the same items; None where this
            request ended without it.
    """

    chunk: TextChunk | ImageChunk
    keys: Sequence[bytes]
    cost: int
    share: float
    request_cost: int
    begun_s: float = field(default_factory=time.monotonic)
    answer: "asyncio.Future[TowerRows | None]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    @property
    def lane(self) -> Lane:
        """The lane of its request."""
        return self.chunk.terms.lane


class Merge:
    """The answer to a request while its pieces come in.

    Args:
        num_items: items of the request.
        width: of a full row.
        failures: of items that no tower sees; None to raise the first failure.
        timings: filled in with the longest times of a piece.
    """

    def __init__(
        self,
        num_items: int,
        width: int,
        failures: dict[int, EmbeddingError] | None,
        timings: Timings,
    ) -> None:
        self.rows = np.zeros((num_items, width), np.float32)
        self.replicas: set[str] = set()
        self._failures = failures
        self._timings = timings

    def put(self, places: Sequence[Sequence[int]], answer: TowerRows) -> None:
        """Put rows and failures in their places; a row has several where items are the same.

        Raises:
            EmbeddingError: an item failed, and the request does not allow that.
        """
        failures = {place: error for i, error in answer.failures.items() for place in places[i]}
        if self._failures is None:
            raise_first(failures)
        else:
            self._failures |= failures
        flat = [place for of_row in places for place in of_row]
        rows = answer.rows
        if len(flat) > len(places):
            rows = np.repeat(rows, [len(of_row) for of_row in places], axis=0)
        self.rows[flat] = rows
        self.replicas |= {answer.replica} - {""}
        self._timings.queue_ms = max(self._timings.queue_ms, answer.queue_ms)
        self._timings.device_ms = max(self._timings.device_ms, answer.device_ms)


def text_pieces(
    token_ids: Mapping[bytes, TokenIds], terms: Terms, limits: RouterConfig
) -> Iterator[Piece]:
    """Cut texts into chunks of bounded tokens."""
    keys, texts = list(token_ids), list(token_ids.values())
    lengths = [len(ids) for ids in texts]
    total = sum(lengths)
    for part in cut(lengths, limits.max_tokens_per_chunk):
        chunk = TextChunk.of(texts[part], terms)
        cost = len(chunk.token_ids)
        yield Piece(chunk, keys[part], cost, cost / limits.max_tokens_per_chunk, total)


def image_pieces(
    images: Mapping[bytes, bytes], terms: Terms, limits: RouterConfig
) -> Iterator[Piece]:
    """Cut pictures into chunks of bounded number and bytes."""
    keys, data = list(images), list(images.values())
    # Share of a chunk that a picture takes, by number or by bytes, whichever is more.
    shares = [
        max(1 / limits.max_images_per_chunk, len(image) / limits.max_chunk_bytes) for image in data
    ]
    for part in cut(shares, 1):
        chunk = ImageChunk(tuple(data[part]), terms)
        yield Piece(chunk, keys[part], len(chunk.images), sum(shares[part]), len(data))


async def fan_out(
    tower: TowerClient,
    pieces: Sequence[Piece],
    landed: Callable[[Piece, TowerRows, str], None],
    hold: Hold,
    max_in_flight: int,
) -> None:
    """Send pieces, at most `max_in_flight` at once, and hand over their rows and fingerprint.

    The limit lets other requests in between the pieces of a large one. Each answered piece gives
    its cost back to the budget.

    Raises:
        EmbeddingError: the first failure; the pieces still under way are cancelled.
    """
    waiting = iter(pieces)

    async def send() -> None:
        for piece in waiting:
            landed(piece, *await tower.embed(piece.chunk, piece.share))
            hold.release(piece.cost)

    await together([send() for _ in range(min(max_in_flight, len(pieces)))])


def raise_first(failures: Mapping[int, EmbeddingError]) -> None:
    """Raise the failure of the first failed item, with its index."""
    for index in sorted(failures):
        error = failures[index]
        raise type(error)(f"item {index}: {error}") from error


async def together(coroutines: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run coroutines at once; the first error cancels the others and is raised itself."""
    if len(coroutines) == 1:  # most requests: no task to start
        await coroutines[0]
        return
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in coroutines:
                group.create_task(coroutine)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def cut(costs: Sequence[float], max_cost: float) -> Iterator[slice]:
    """Yield runs of items whose costs add up to at most `max_cost`; a larger item goes alone."""
    start, total = 0, 0.0
    for index, cost in enumerate(costs):
        if index > start and total + cost > max_cost * (1 + 1e-9):  # sums of shares are inexact
            yield slice(start, index)
            start, total = index, 0.0
        total += cost
    if start < len(costs):
        yield slice(start, len(costs))
