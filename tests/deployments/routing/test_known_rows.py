"""Known rows, and towers that are replaced: the rows of an answer are of one checkpoint."""

import pytest

from deployments.config import RouterConfig
from deployments.errors import TowerUnavailableError
from deployments.routing.tolerance import Tolerance
from deployments.routing.tower_request import TextRequest
from tests.deployments.routing.asking import (
    CACHE_BYTES,
    LIMITS,
    WIDTH,
    embed,
    in_a_minute,
    run,
    texts_of,
)

BROKEN = 66


async def test_the_cache_answers_what_was_computed_before(make_tower):
    """With room for rows the second request computes nothing; failures are never kept."""
    for cache_bytes, times in ((RouterConfig().cache_bytes, 1), (0, 2)):
        tower = make_tower(cache_bytes=cache_bytes)
        for _ in range(2):
            rows, failures = await embed(tower, [5, BROKEN, 7], partial=True)
            assert (rows, set(failures)) == ([5, 0, 7], {1})
        assert tower.computed == {5: times, 7: times, BROKEN: 2}
        assert tower.reused["cache"] == (2 if cache_bytes else 0)


async def test_rows_of_a_replaced_tower_are_never_served_once_it_is_heard(make_tower):
    """After an answer of its successor items are computed again, once."""
    tower = make_tower(cache_bytes=CACHE_BYTES)
    await embed(tower, [5])
    tower.fingerprint = "v2"
    await embed(tower, [7])
    for _ in range(2):
        assert (await embed(tower, [5]))[0] == [5]
    assert tower.computed[5] == 2


async def test_known_rows_are_computed_again_where_the_rest_comes_from_another_tower(make_tower):
    """An answer has rows of one tower only; the budget is asked for what is computed again."""
    tower = make_tower(cache_bytes=CACHE_BYTES)
    await embed(tower, [5, 6])
    tower.fingerprint = "v2"
    items = texts_of([5, 7, 6])
    request = await run(TextRequest, tower, items, "bulk")
    assert request.rows[:, 0].tolist() == [5, 7, 6]
    assert request.fingerprints == {"v2"}
    assert tower.computed == {5: 2, 6: 2, 7: 1}
    assert tower.budget.arrived_total == 2 * 5


async def test_rows_known_when_another_request_hears_a_new_tower_are_computed_again(make_tower):
    """Between looking up and answering the tower may have been replaced."""
    tower = make_tower(cache_bytes=CACHE_BYTES)
    await embed(tower, [5])
    with tower.budget.hold("bulk") as hold:
        asked = hold, "bulk", in_a_minute(), LIMITS, WIDTH, Tolerance(False, 1)
        request = TextRequest(tower, texts_of([5]), *asked)
        await request.admit()
        tower.fingerprint = "v2"
        tower.cache.heard("v2")
        await request.run()
    assert request.fingerprints == {"v2"}
    assert tower.computed[5] == 2


@pytest.mark.parametrize(
    ("made_by", "fingerprint", "chunks"),
    [
        ("old new old old", "old", 4),  # the smaller part is computed once more
        ("new new old new", "new", 4),
        ("old old new new old", "old", 5),  # as often as it needs
        ("old old new new new new", "new", 8),  # unless no such replica answers any more
    ],
)
async def test_rows_are_of_one_checkpoint_while_another_is_rolled_out(
    make_tower, made_by, fingerprint, chunks
):
    """Three chunks go to replicas of either, then all to the new ones; failures stay in place."""
    tower = make_tower(cache_bytes=CACHE_BYTES)
    tower.fingerprint, tower.fingerprints = "new", made_by.split()
    request = await run(TextRequest, tower, texts_of([*range(1, 10), BROKEN]), partial=True)
    part = {"old": 0.25, "new": 0.5}[fingerprint]
    assert request.rows[:, 0].tolist() == [*(part + x for x in range(1, 10)), 0]
    assert request.fingerprints == {fingerprint}
    assert len(tower.chunks) == chunks
    assert list(request.failures) == [18]


async def test_no_answer_is_given_where_replicas_of_two_checkpoints_go_on_answering(make_tower):
    """Each time the part that is computed again comes from the checkpoint that it came from."""
    tower = make_tower()
    tower.fingerprints = ["old", "new", *2 * (3 * ["new"] + 3 * ["old"])]
    with pytest.raises(TowerUnavailableError, match="replaced"):
        await run(TextRequest, tower, texts_of(range(1, 6)))
