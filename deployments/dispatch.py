"""Sends the pieces of a request to a tower and puts the rows in their places."""

import asyncio
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deployments.admission import Hold
from deployments.answer import Timings
from deployments.config import RouterConfig
from deployments.model.errors import EmbeddingError
from deployments.model.tokenizer import TokenIds
from deployments.tower_client import TowerClient
from deployments.work import ImageChunk, Terms, TextChunk, TowerRows, cut


@dataclass(frozen=True)
class Piece:
    """A chunk, the places of its items in the request, and its cost in tokens or images."""

    chunk: TextChunk | ImageChunk
    places: list[int]
    cost: int


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
        self._failures = failures
        self._timings = timings

    def put(self, piece: Piece, answer: TowerRows) -> None:
        """Put a piece's rows and failures in their places.

        Raises:
            EmbeddingError: an item failed, and the request does not allow that.
        """
        failures = {piece.places[i]: error for i, error in answer.failures.items()}
        if self._failures is None:
            raise_first(failures)
        else:
            self._failures |= failures
        self.rows[piece.places] = answer.rows
        self._timings.queue_ms = max(self._timings.queue_ms, answer.queue_ms)
        self._timings.device_ms = max(self._timings.device_ms, answer.device_ms)


def text_pieces(
    token_ids: Mapping[int, TokenIds], terms: Terms, limits: RouterConfig
) -> Iterator[Piece]:
    """Cut texts, by their place in the request, into chunks of bounded tokens."""
    places, texts = list(token_ids), list(token_ids.values())
    for part in cut([len(ids) for ids in texts], limits.max_tokens_per_chunk):
        chunk = TextChunk.of(texts[part], terms)
        yield Piece(chunk, places[part], len(chunk.token_ids))


def image_pieces(
    images: Mapping[int, bytes], terms: Terms, limits: RouterConfig
) -> Iterator[Piece]:
    """Cut pictures, by their place in the request, into chunks of bounded number and bytes."""
    places, data = list(images), list(images.values())
    # Share of a chunk that a picture takes, by number or by bytes, whichever is more.
    costs = [
        max(1 / limits.max_images_per_chunk, len(image) / limits.max_chunk_bytes) for image in data
    ]
    for part in cut(costs, 1):
        yield Piece(ImageChunk(tuple(data[part]), terms), places[part], len(places[part]))


async def fan_out(
    tower: TowerClient, pieces: Sequence[Piece], merge: Merge, hold: Hold, max_in_flight: int
) -> None:
    """Send pieces, at most `max_in_flight` at once, and merge their rows.

    The limit lets other requests in between the pieces of a large one. Each answered piece gives
    its cost back to the budget.

    Raises:
        EmbeddingError: the first failure; the pieces still under way are cancelled.
    """
    waiting = iter(pieces)

    async def send() -> None:
        for piece in waiting:
            merge.put(piece, await tower.embed(piece.chunk))
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
