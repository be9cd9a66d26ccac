"""One tower's part of one request, from its items to their rows.

Steps: the same items once, known rows from the cache, admission of what is left, chunks of bounded
cost, a few of them under way at once, rows into their places, budget given back chunk by chunk.
While another checkpoint is rolled out, rows of the one or of the other are computed once more.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from deployments.config import RouterConfig
from deployments.errors import TowerUnavailableError
from deployments.messages import ImageChunk, Lane, Terms, TextChunk, TowerRows
from deployments.model.errors import EmbeddingError
from deployments.model.output import Row
from deployments.model.tokenizer import TokenIds
from deployments.routing.admission import Hold
from deployments.routing.cache import Key, digests
from deployments.routing.tolerance import Tolerance
from deployments.routing.tower_client import Chunk, TowerClient

T = TypeVar("T", TokenIds, bytes)

# How often part of an answer is computed again, while replicas of two checkpoints answer; and after
# how many times in vain the other part is. With as many of each, half of the chunks fit every time.
MAX_AGAIN, IN_VAIN = 12, 3


class TowerRequest(ABC, Generic[T]):
    """What one request asks of one tower. Call `admit`, then `run`.

    Items are the same where their token ids or encoded bytes are.

    Args:
        client: calls the tower; has its cache.
        items: token ids or encoded images, by their index in the request.
        hold: of the tower's budget; images have theirs before they are fetched.
        lane: of its chunks.
        deadline_s: when nobody waits for it any more, by the event loop's clock.
        limits: of a chunk, and how many are under way at once.
        width: of a full row.
        tolerance: which failures of single items are noted instead of raised.

    Attributes:
        indices: of the items in the request.
        rows: float32 [items, width], un-normalised; the row of a failed item is zero.
        failures: by index in the request.
        replicas: that computed rows, as `text:ID`.
        queue_ms, device_ms: the longest of a chunk.
    """

    def __init__(
        self,
        client: TowerClient,
        items: Mapping[int, T],
        hold: Hold,
        lane: Lane,
        deadline_s: float,
        limits: RouterConfig,
        width: int,
        tolerance: Tolerance,
    ) -> None:
        self.client = client
        self.indices = list(items)
        self.rows = np.zeros((len(items), width), np.float32)
        self.failures: dict[int, EmbeddingError] = {}
        self.replicas: set[str] = set()
        self.queue_ms = self.device_ms = 0.0
        self._items: list[T] = list(items.values())
        self._hold = hold
        self._lane = lane
        self._deadline_s = deadline_s
        self._limits = limits
        self._tolerance = tolerance
        self._places: dict[Key, list[int]] = {}  # rows of each different item
        self._known: dict[Key, Row] = {}
        self._known_by = ""  # the fingerprint of the known rows
        self._made: list[tuple[Sequence[Key], str]] = []  # what was answered, by which fingerprint

    async def admit(self) -> None:
        """Hold the budget for what has to be computed: items once, without the rows that are known.

        Raises:
            RequestTooLargeError, OverloadedError: see `Budget.admit`.
            TowerUnavailableError: the tower sleeps; see `TowerClient.awake`.
        """
        for place, key in enumerate(await digests(self._items)):
            self._places.setdefault(key, []).append(place)
        cache, metrics = self.client.cache, self.client.metrics
        self._known_by = cache.fingerprint or ""
        rows = {key: cache.get(key) for key in self._places}
        self._known = {key: row for key, row in rows.items() if row is not None}
        metrics.reuse(self.client.name, "request", len(self._items) - len(self._places))
        metrics.reuse(self.client.name, "cache", len(self._known))
        missing = self._missing()
        self._hold.arrive(self._cost_of(missing))
        if missing:  # after it counts as work that has arrived, which wakes the tower
            await self.client.awake()

    @property
    def fingerprints(self) -> set[str]:
        """Of the tower that made the rows: one, once `run` has returned."""
        return {made_by for _, made_by in self._made}

    async def run(self) -> None:
        """Get the rows, all of one checkpoint.

        Raises:
            EmbeddingError: the first failure; the chunks still under way are cancelled.
            TowerUnavailableError: replicas of two checkpoints went on answering by turns.
        """
        await self._compute(self._missing())
        known = list(self._known)
        if known and self.fingerprints | {self.client.cache.fingerprint} != {self._known_by}:
            # The tower was replaced after these rows were kept: its successor computes them too.
            await self._compute_again(known)
        elif known:
            rows = np.stack(list(self._known.values()))
            self._put(known, TowerRows(rows, fingerprint=self._known_by))
        if len(self.fingerprints) > 1:
            await self._agree()

    async def _agree(self) -> None:
        """Compute the smaller part again until all rows are of one checkpoint.

        Once no replica with that of the larger part answers any more, the larger part is.
        """
        counts: Counter[str] = Counter()
        for keys, made_by in self._made:
            counts[made_by] += len(keys)
        kept, in_vain = counts.most_common(1)[0][0], 0
        others = self._of_others(kept)
        for _ in range(MAX_AGAIN):
            self._made = [part for part in self._made if part[1] == kept]
            await self._compute_again(others)
            left = self._of_others(kept)
            if not left:
                return
            in_vain = 0 if len(left) < len(others) else in_vain + 1
            others = left
            if in_vain == IN_VAIN:
                kept, in_vain = self._made[-1][1], 0
                others = self._of_others(kept)
        raise TowerUnavailableError(
            f"the {self.client.name} tower is being replaced; retry shortly"
        )

    def _of_others(self, kept: str) -> list[Key]:
        """Return the items whose rows are of another fingerprint than this one."""
        return [key for keys, made_by in self._made if made_by != kept for key in keys]

    @abstractmethod
    def _cost(self, item: T) -> int:
        """Return what an item takes of the budget, in tokens or images."""

    @abstractmethod
    def _share(self, item: T) -> float:
        """Return the share of a full chunk that an item takes."""

    @abstractmethod
    def _chunk(self, items: Sequence[T], terms: Terms) -> Chunk:
        """Return what the tower is sent."""

    def _missing(self) -> list[Key]:
        return [key for key in self._places if key not in self._known]

    def _of(self, keys: Iterable[Key]) -> list[T]:
        return [self._items[self._places[key][0]] for key in keys]

    def _cost_of(self, keys: Iterable[Key]) -> int:
        return sum(map(self._cost, self._of(keys)))

    async def _compute(self, keys: Sequence[Key]) -> None:
        """Send items in chunks; only some at once, which lets other requests in between."""
        shares = [self._share(item) for item in self._of(keys)]
        parts = [keys[part] for part in cut(shares, 1)]
        waiting = iter(parts)  # of all senders: each takes the next part once its last is answered

        async def send() -> None:
            for part in waiting:
                await self._send(part)

        num_senders = min(len(parts), self._limits.max_chunks_in_flight)
        await together([send() for _ in range(num_senders)])

    async def _compute_again(self, keys: Sequence[Key]) -> None:
        """Replace what is known of items; the budget is asked for their cost once more."""
        places = {self.indices[place] for key in keys for place in self._places[key]}
        self.failures = {i: error for i, error in self.failures.items() if i not in places}
        self._hold.arrive(self._cost_of(keys))  # all that it held is done
        await self._compute(keys)

    async def _send(self, keys: Sequence[Key]) -> None:
        """Send one chunk and take its answer in."""
        items = self._of(keys)
        left_s = self._deadline_s - asyncio.get_running_loop().time()
        chunk = self._chunk(items, Terms(self._lane, max(left_s, 0)))
        answer = await self.client.embed(chunk, sum(map(self._share, items)))
        for index, key in enumerate(keys):
            if index not in answer.failures:
                self.client.cache.put(key, answer.rows[index], answer.fingerprint)
        self._put(keys, answer)
        self._hold.done(sum(map(self._cost, items)))

    def _put(self, keys: Sequence[Key], answer: TowerRows) -> None:
        """Put rows and failures in their places; a row has several where items are the same.

        Raises:
            EmbeddingError: an item failed, and the request does not bear that.
        """
        places = [self._places[key] for key in keys]
        failures = {
            self.indices[place]: error
            for row, error in answer.failures.items()
            for place in places[row]
        }
        self._tolerance.check(failures)
        self.failures |= failures
        flat = [place for of_row in places for place in of_row]
        self.rows[flat] = np.repeat(answer.rows, [len(of_row) for of_row in places], axis=0)
        self._made.append((keys, answer.fingerprint))
        self.replicas |= {answer.replica} - {""}
        self.queue_ms = max(self.queue_ms, answer.queue_ms)
        self.device_ms = max(self.device_ms, answer.device_ms)


class TextRequest(TowerRequest[TokenIds]):
    """What a request asks of the text tower; its cost is tokens."""

    def _cost(self, item: TokenIds) -> int:
        return len(item)

    def _share(self, item: TokenIds) -> float:
        return len(item) / self._limits.max_tokens_per_chunk

    def _chunk(self, items: Sequence[TokenIds], terms: Terms) -> TextChunk:
        return TextChunk.of(items, terms)


class ImageRequest(TowerRequest[bytes]):
    """What a request asks of the vision tower; its cost is images."""

    def _cost(self, _item: bytes) -> int:
        return 1

    def _share(self, item: bytes) -> float:
        """Return the share by number or by bytes, whichever is more."""
        limits = self._limits
        return max(1 / limits.max_images_per_chunk, len(item) / limits.max_chunk_bytes)

    def _chunk(self, items: Sequence[bytes], terms: Terms) -> ImageChunk:
        return ImageChunk(tuple(items), terms)


async def together(coroutines: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run coroutines at once; the first error cancels the others and is raised itself.

    All of them have ended when this returns or raises, and so when the caller is cancelled.
    """
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
