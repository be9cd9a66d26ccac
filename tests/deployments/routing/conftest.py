"""A tower that every test of routing may use."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from deployments.errors import DeadlineError
from deployments.messages import ImageChunk, Terms, TowerRows
from deployments.model.errors import ImageError
from deployments.routing.admission import Budget
from deployments.routing.cache import RowCache

WIDTH = 4
BROKEN, LATE = 66, 99
FRACTIONS = {"v1": 0.0, "v2": 0.0, "old": 0.25, "new": 0.5}  # by which rows tell who made them


class Tower:
    """Stands in for a TowerClient: an item's row is its first token or byte, when told to answer.

    The item 66 fails by itself; 99 fails for a reason that is not the item's own.
    """

    def __init__(self, cache_bytes=0, gated=False, limit=10_000) -> None:
        self.name = "text"
        self.budget = Budget("tokens", limit)
        self.cache = RowCache(cache_bytes)
        self.metrics = self
        self.reused: Counter[str] = Counter()
        self.computed: Counter[int] = Counter()
        self.chunks: list[list[int]] = []
        self.terms: list[Terms] = []
        self.under_way = self.most_under_way = self.cancelled = 0
        self.gate = asyncio.Semaphore(0 if gated else 10_000)
        self.fingerprint = "v1"
        self.fingerprints: list[str] = []  # of the next answers, before the lasting one

    def reuse(self, _tower, how, count) -> None:
        self.reused[how] += count

    async def awake(self) -> None:
        """It never sleeps."""

    async def embed(self, chunk, _share):
        items = chunk.images if isinstance(chunk, ImageChunk) else chunk.texts()
        firsts = [int(item[0]) for item in items]
        self.computed.update(firsts)
        self.chunks.append(firsts)
        self.terms.append(chunk.terms)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.gate.acquire()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1
        kinds = {BROKEN: ImageError("broken"), LATE: DeadlineError("late")}
        failures = {i: kinds[first] for i, first in enumerate(firsts) if first in kinds}
        fingerprint = self.fingerprints.pop(0) if self.fingerprints else self.fingerprint
        rows = np.repeat(np.array(firsts, np.float32)[:, None], WIDTH, axis=1)
        rows += FRACTIONS[fingerprint]
        rows[list(failures)] = 0
        self.cache.heard(fingerprint)
        times = float(len(self.chunks)), 10.0 * len(firsts)
        return TowerRows(rows, failures, *times, "text:a", fingerprint)

    def answer(self, calls=100):
        for _ in range(calls):
            self.gate.release()


@pytest.fixture
def make_tower() -> Iterator[Callable[..., Tower]]:
    """Make towers; after the test none holds budget or has a chunk under way."""
    made: list[Tower] = []

    def make(**options) -> Tower:
        made.append(Tower(**options))
        return made[-1]

    yield make
    for tower in made:
        assert (tower.budget.outstanding, tower.under_way) == (0, 0)
