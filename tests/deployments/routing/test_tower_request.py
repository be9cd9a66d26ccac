"""One tower's part of a request: each item once, in bounded chunks, and every row in its place."""

import asyncio
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.errors import DeadlineError, OverloadedError, TowerUnavailableError
from deployments.model.errors import EmbeddingError, ImageError
from deployments.routing.tower_request import ImageRequest, TextRequest, cut, together
from tests.deployments.routing.asking import (
    CACHE_BYTES,
    WIDTH,
    embed,
    run,
    texts_of,
)

BROKEN, LATE = 66, 99


async def start(*args, **options):
    """Begin a request and let it run until it waits."""
    task = asyncio.create_task(embed(*args, **options))
    await settle()
    return task


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


async def test_rows_come_in_the_requests_order_over_several_chunks(make_tower):
    """Each chunk has as many tokens as allowed, and a larger text goes alone."""
    tower = make_tower()
    items = texts_of(range(1, 8)) | {14: np.arange(20, 40, dtype=np.int32)}
    request = await run(TextRequest, tower, items, "bulk")
    assert sorted(tower.chunks) == [[1, 2, 3, 4], [5, 6, 7], [20]]
    np.testing.assert_array_equal(request.rows[:, 0], [1, 2, 3, 4, 5, 6, 7, 20])
    assert request.rows.shape == (8, WIDTH)


async def test_images_are_cut_by_number_and_by_bytes(make_tower):
    """Four small ones fill a chunk, as do two of half the bytes; a larger one goes alone."""
    sizes = [1] * 5 + [50, 50, 50, 101]
    images = {i: bytes([i + 1]) * size for i, size in enumerate(sizes)}
    tower = make_tower()
    request = await run(ImageRequest, tower, images)
    assert sorted(tower.chunks) == [[1, 2, 3, 4], [5, 6], [7, 8], [9]]
    np.testing.assert_array_equal(request.rows[:, 0], range(1, 10))
    assert tower.budget.arrived_total == 9


async def test_repeated_items_are_computed_once_and_fill_every_place(make_tower):
    """Over several chunks, and different items stay apart."""
    tower = make_tower()
    firsts = [5, 7, 5, 9, 7, 5, 11, 12, 14, 5]
    assert await embed(tower, firsts) == (firsts, {})
    assert tower.computed == dict.fromkeys(set(firsts), 1)
    assert tower.reused == {"request": 4, "cache": 0}


async def test_a_repeated_item_that_fails_fails_in_every_place(make_tower):
    """Both places have the error, and no other."""
    rows, failures = await embed(make_tower(), [BROKEN, 7, BROKEN], partial=True)
    assert rows == [0, 7, 0]
    assert set(failures) == {0, 2}


async def test_the_first_failed_item_is_raised_with_its_index_in_the_request(make_tower):
    """Though the second copy of it and a later one failed too."""
    with pytest.raises(ImageError, match="item 2: broken"):
        await embed(make_tower(), [7, BROKEN, BROKEN, LATE])
    with pytest.raises(DeadlineError, match="item 0: late"):
        await embed(make_tower(), [LATE, BROKEN])


async def test_no_more_chunks_are_under_way_than_allowed(make_tower):
    """The next one goes out when one is answered."""
    tower = make_tower(gated=True)
    request = await start(tower, range(1, 21))  # five chunks
    assert len(tower.chunks) == 2
    tower.answer(1)
    await settle()
    assert len(tower.chunks) == 3
    tower.answer()
    assert await request == (list(range(1, 21)), {})
    assert tower.most_under_way == 2


async def test_the_budget_is_given_back_chunk_by_chunk(make_tower):
    """What is answered makes room for others before the request is done."""
    tower = make_tower(gated=True, limit=16)
    request = await start(tower, range(1, 9))
    assert tower.budget.outstanding == 16
    with pytest.raises(OverloadedError):
        await embed(tower, [40])
    tower.answer(1)
    await settle()
    assert tower.budget.outstanding == 8
    other = await start(tower, [40])
    tower.answer()
    assert (await request)[0] == list(range(1, 9))
    assert (await other)[0] == [40]


async def test_only_what_is_computed_counts_against_the_budget(make_tower):
    """Nine copies of a text fit in a budget for two, and kept rows need none."""
    tower = make_tower(cache_bytes=CACHE_BYTES, limit=4)
    assert (await embed(tower, [5] * 9))[0] == [5] * 9
    tower.budget.admit(4, "bulk")
    with pytest.raises(OverloadedError):
        await embed(tower, [6])
    assert (await embed(tower, [5]))[0] == [5]
    tower.budget.release(4, "bulk")


async def test_a_chunk_says_how_long_its_caller_still_waits(make_tower):
    """Each its own time: a later chunk of a request has less of it left."""
    tower = make_tower(gated=True)
    request = await start(tower, range(1, 21))
    await asyncio.sleep(0.05)
    tower.answer()
    await request
    first, *_, last = (terms.timeout_s for terms in tower.terms)
    assert last + 0.04 < first <= 60


async def test_what_is_refused_is_not_sent(make_tower):
    """The request over the budget reaches no tower."""
    tower = make_tower(limit=4)
    with pytest.raises(EmbeddingError, match="6 tokens"):
        await embed(tower, [1, 2, 3])
    assert tower.chunks == []


async def test_a_caller_who_leaves_cancels_every_chunk_under_way(make_tower):
    """No chunk is sent after that."""
    tower = make_tower(gated=True)
    request = await start(tower, range(1, 21))
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert tower.cancelled == len(tower.chunks) == 2


async def test_a_failure_cancels_the_chunks_under_way(make_tower):
    """The caller hears of it at once, and what waited is not sent."""
    tower = make_tower(gated=True)
    request = await start(tower, [BROKEN, *range(1, 20)])
    tower.answer(1)
    with pytest.raises(ImageError, match="item 0"):
        await request
    assert tower.cancelled == 1
    assert len(tower.chunks) == 2


async def test_each_of_two_requests_at_once_computes_its_own_items(make_tower):
    """Neither waits for the other nor suffers when it leaves."""
    tower = make_tower(cache_bytes=CACHE_BYTES, gated=True)
    first, second = await start(tower, [5]), await start(tower, [5])
    first.cancel()
    tower.answer()
    assert await second == ([5], {})
    assert tower.computed[5] == 2


async def test_an_answer_says_who_made_it_and_what_took_longest(make_tower):
    """Kept rows name the tower that made them, but no replica and no time."""
    tower = make_tower(cache_bytes=CACHE_BYTES)
    request = await run(TextRequest, tower, texts_of(range(1, 7)))
    assert (request.fingerprints, request.replicas) == ({"v1"}, {"text:a"})
    assert (request.queue_ms, request.device_ms) == (2.0, 40.0)
    request = await run(TextRequest, tower, texts_of([1]))
    assert (request.fingerprints, request.replicas) == ({"v1"}, set())
    assert (request.queue_ms, request.device_ms) == (0.0, 0.0)


async def test_the_first_error_of_several_at_once_cancels_the_others():
    """It is raised as itself, and nothing is left running; one alone needs no task."""
    ended = []

    async def fail():
        await asyncio.sleep(0)
        raise TowerUnavailableError("gone")

    async def wait():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("wait")

    with pytest.raises(TowerUnavailableError, match="gone"):
        await together([wait(), fail(), wait()])
    assert ended == ["wait", "wait"]
    with pytest.raises(TowerUnavailableError):
        await together([fail()])
    await together([])


@given(st.lists(st.integers(1, 30)), st.integers(1, 20))
def test_a_cut_keeps_order_and_bounds(costs, most):
    """Every item is in one run; only one alone exceeds the bound; no two runs would fit in one."""
    for scale in (1, most):  # in units, and in inexact shares of the whole
        runs = [costs[part] for part in cut([cost / scale for cost in costs], most / scale)]
        assert [cost for run in runs for cost in run] == costs
        assert all(sum(run) <= most or len(run) == 1 for run in runs)
        assert all(sum(run) + after[0] > most for run, after in pairwise(runs))
