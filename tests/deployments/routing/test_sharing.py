"""Identical items are computed once, and nobody suffers from whom they share the work with."""

import asyncio
from collections import Counter
from functools import partial
from typing import ClassVar

import numpy as np
import pytest

from deployments.config import RouterConfig
from deployments.errors import DeadlineError, OverloadedError
from deployments.messages import Terms, Timings, TowerRows
from deployments.model.errors import EmbeddingError, ImageError
from deployments.routing import sharing
from deployments.routing.admission import Budget
from deployments.routing.dispatch import Merge, text_pieces
from deployments.routing.modality import Modality
from deployments.routing.sharing import Sharing

WIDTH = 4
LIMITS = RouterConfig(max_tokens_per_chunk=8)
CACHE_BYTES = 1_000_000


class Tower:
    """Stands in for a TowerClient: a text's row is its first token, when told to answer.

    Token 666 fails as an item; 13 fails for a reason that is not the item's own.
    """

    def __init__(self, gated: bool) -> None:
        self.computed: Counter[int] = Counter()
        self.gate = asyncio.Semaphore(0 if gated else 10_000)
        self.fresh_fingerprint: str | None = "v1"
        self.replica = "v1"

    async def embed(self, chunk, _share):
        firsts = [int(ids[0]) for ids in chunk.texts()]
        self.computed.update(firsts)
        await self.gate.acquire()
        failures: dict[int, EmbeddingError] = {}
        for index, first in enumerate(firsts):
            if first == 666:
                failures[index] = ImageError("broken")
            if first == 13:
                failures[index] = DeadlineError("late")
        rows = np.repeat(np.array(firsts, np.float32)[:, None], WIDTH, axis=1)
        rows[list(failures)] = 0
        self.fresh_fingerprint = self.replica
        return TowerRows(rows, failures, 1.0, 2.0), self.replica


class Router:
    """The part of a Router that asks one tower."""

    made: ClassVar[list["Router"]] = []

    def __init__(self, cache_bytes=0, gated=False, max_tokens=10_000) -> None:
        self.tower = Tower(gated)
        self.reused: Counter[str] = Counter()
        self.budget = Budget("tokens", max_tokens)
        self.sharing = Sharing(cache_bytes, lambda how, count: self.reused.update({how: count}))
        self.made.append(self)
        cut = partial(text_pieces, limits=LIMITS)
        self.modality = Modality(self.tower, self.budget, self.sharing, len, cut, 2)

    async def embed(self, firsts, lane="interactive", partial=False):
        """Return the first column of the rows of texts of two tokens, and their failures."""
        failures: dict[int, EmbeddingError] | None = {} if partial else None
        merge = Merge(len(firsts), WIDTH, failures, Timings())
        texts = {i: np.array([first, 1], np.int32) for i, first in enumerate(firsts)}
        asked = await self.modality.ask(texts, merge, Terms(lane, 60))
        with self.modality.admit(asked) as embed:
            await embed()
        return merge.rows[:, 0].tolist(), failures

    async def start(self, *args, **options):
        """Begin a request and let it run until it waits."""
        task = asyncio.create_task(self.embed(*args, **options))
        for _ in range(20):
            await asyncio.sleep(0)
        return task

    def answer(self, calls=100):
        for _ in range(calls):
            self.tower.gate.release()


@pytest.fixture(autouse=True)
def leaves_nothing_behind(monkeypatch):
    """After each test no budget is held and no piece is under way."""
    monkeypatch.setattr(Router, "made", made := [])
    yield
    for router in made:
        assert router.budget.outstanding == 0
        assert router.sharing._under_way == {}


async def test_repeated_items_of_a_request_are_computed_once_and_fill_every_place():
    """Rows come in the request's order, over several pieces, and different items stay apart."""
    router = Router()
    firsts = [5, 7, 5, 9, 7, 5, 11, 12, 14, 5]
    rows, _ = await router.embed(firsts)
    assert rows == firsts
    assert router.tower.computed == dict.fromkeys(set(firsts), 1)
    assert router.reused == {"request": 4}


async def test_a_repeated_item_that_fails_fails_in_every_place():
    """Both places have the error, and no other."""
    rows, failures = await Router().embed([666, 7, 666], partial=True)
    assert rows == [0, 7, 0]
    assert set(failures) == {0, 2}
    with pytest.raises(ImageError, match="item 1: broken"):
        await Router().embed([7, 666, 666])


async def test_the_same_item_in_flight_is_computed_once():
    """A second request waits for the first one's row, and computes only what is new."""
    router = Router(gated=True)
    first = await router.start([5, 7])
    second = await router.start([7, 9])
    assert router.tower.computed == {5: 1, 7: 1, 9: 1}
    router.answer()
    assert await first == ([5, 7], None)
    assert await second == ([7, 9], None)
    assert router.reused == {"flight": 1}
    assert await router.embed([7]) == ([7], None)  # no cache: later requests compute again
    assert router.tower.computed[7] == 2


async def test_who_follows_does_not_wait_long_for_a_tower_that_is_silent(monkeypatch):
    """A piece without an answer, as on a node that is gone, is not waited for, by old or new."""
    monkeypatch.setattr(sharing, "FOLLOW_S", 0.5)
    router = Router(gated=True)
    stuck, follower = await router.start([5]), await router.start([5])
    assert router.tower.computed == {5: 1}
    await asyncio.sleep(0.7)
    later = await router.start([5])
    assert router.tower.computed == {5: 2}  # it follows the second, which is young
    router.answer()
    assert await stuck == await follower == await later == ([5], None)


@pytest.mark.parametrize("leave", ["cancelled", "failed"])
async def test_who_follows_does_not_fail_with_whom_it_follows(leave):
    """When the first caller leaves, or its time runs out, the second computes for itself."""
    router = Router(gated=True)
    first = await router.start([13 if leave == "failed" else 5, 7])
    second = await router.start([7, 9])
    assert router.tower.computed[7] == 1
    if leave == "cancelled":
        first.cancel()
        router.answer()
    else:
        router.answer(1)
    with pytest.raises((asyncio.CancelledError, DeadlineError)):
        await first
    router.answer()
    assert await second == ([7, 9], None)
    assert router.tower.computed[7] == (2 if leave == "cancelled" else 1)


async def test_those_left_behind_compute_at_once_and_do_not_wait_for_each_other():
    """One caller's end delays the others once, not once for each of them."""
    router = Router(gated=True)
    first, second, third = [await router.start([5]) for _ in range(3)]
    assert router.tower.computed[5] == 1
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    for _ in range(20):
        await asyncio.sleep(0)
    assert router.tower.computed[5] == 3
    router.answer()
    assert await second == await third == ([5], None)


async def test_an_items_own_failure_is_shared_and_anothers_is_not():
    """A broken picture is broken for both; a chunk that came too late is computed again."""
    router = Router(gated=True)
    first = await router.start([666, 13], partial=True)
    second = await router.start([666, 13], partial=True)
    router.answer()
    (_, failures), (_, followed) = await first, await second
    assert isinstance(followed[0], ImageError)
    assert isinstance(followed[1], DeadlineError)
    assert set(failures) == {0, 1}
    assert router.tower.computed == {666: 1, 13: 2}


async def test_who_follows_and_leaves_does_not_disturb_whom_it_follows():
    """The first caller has its rows, as has a third."""
    router = Router(gated=True)
    first, second, third = [await router.start([5]) for _ in range(3)]
    second.cancel()
    router.answer()
    assert await first == await third == ([5], None)
    assert router.tower.computed == {5: 1}


async def test_nobody_waits_for_a_dearer_request_or_for_bulk_work():
    """A query computes an item that a large or a bulk request has under way; bulk may wait."""
    router = Router(gated=True)
    large, small = await router.start(range(20, 26)), await router.start([21])
    assert router.tower.computed[21] == 2
    bulk, interactive = await router.start([40], lane="bulk"), await router.start([40])
    assert router.tower.computed[40] == 2
    query, patient = await router.start([50]), await router.start([50], lane="bulk")
    assert router.tower.computed[50] == 1
    router.answer()
    await asyncio.gather(large, small, bulk, interactive, query, patient)


async def test_only_what_is_computed_counts_against_the_budget():
    """Nine copies of a text fit in a budget for two; three different ones do not."""
    router = Router(max_tokens=4)
    assert await router.embed([5] * 9) == ([5] * 9, None)
    gated = Router(gated=True, max_tokens=4)
    first = await gated.start([5, 6])
    follower = await gated.start([5, 6])
    with pytest.raises(OverloadedError):
        await gated.embed([7])
    gated.answer()
    assert await first == await follower


async def test_the_cache_answers_what_was_computed_before_and_is_off_by_default():
    """With room for rows the second request computes nothing; failures are never kept."""
    for cache_bytes, times in ((CACHE_BYTES, 1), (RouterConfig().cache_bytes, 2)):
        router = Router(cache_bytes)
        for _ in range(2):
            assert await router.embed([5, 666, 7], partial=True)
        assert router.tower.computed == {5: times, 7: times, 666: 2}
        assert router.reused["cache"] == (2 if cache_bytes else 0)


async def test_rows_of_another_fingerprint_are_never_served():
    """After a reload items are computed again, and so while nobody knows what is served."""
    router = Router(CACHE_BYTES)
    await router.embed([5])
    router.tower.fresh_fingerprint = None  # the tower has not been heard of for a while
    await router.embed([5])
    assert router.tower.computed[5] == 2
    router.tower.fresh_fingerprint = router.tower.replica = "v2"
    await router.embed([5])
    assert router.tower.computed[5] == 3
    await router.embed([5])
    assert router.tower.computed[5] == 3
