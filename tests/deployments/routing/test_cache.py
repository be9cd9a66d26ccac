"""The cache of rows: what it keeps, whose rows, what leaves first, and its keys."""

import numpy as np

from deployments.routing.cache import ENTRY_BYTES, LARGE_BYTES, RowCache, digests

ROW_BYTES = 4 * 8 + ENTRY_BYTES


def row(value: float):
    return np.full(8, value, np.float32)


def cache_of(max_bytes: int) -> RowCache:
    """Return a cache that has heard of the tower `v1`."""
    cache = RowCache(max_bytes)
    cache.heard("v1")
    return cache


def test_a_cache_of_no_bytes_keeps_nothing():
    """It is off, as for images, and still knows which tower was heard last."""
    cache = cache_of(0)
    cache.put(b"a", row(1), "v1")
    assert cache.get(b"a") is None
    assert (len(cache), cache.held_bytes, cache.fingerprint) == (0, 0, "v1")


def test_the_least_recently_used_row_leaves_first():
    """With room for two, the one asked for last stays when a third comes."""
    cache = cache_of(2 * ROW_BYTES)
    cache.put(b"a", row(1), "v1")
    cache.put(b"b", row(2), "v1")
    assert cache.get(b"a") is not None
    cache.put(b"c", row(3), "v1")
    assert cache.get(b"b") is None
    np.testing.assert_array_equal(cache.get(b"a"), row(1))
    np.testing.assert_array_equal(cache.get(b"c"), row(3))


def test_the_budget_holds_whatever_is_put():
    """A thousand rows, some put twice, take no more than allowed, and the newest are there."""
    cache = cache_of(10 * ROW_BYTES + 5)
    for number in range(1000):
        cache.put(b"%d" % number, row(number), "v1")
        cache.put(b"%d" % (number // 2), row(number // 2), "v1")
        assert cache.held_bytes <= 10 * ROW_BYTES + 5
    assert cache.held_bytes == 10 * ROW_BYTES
    assert cache.get(b"999") is not None


def test_a_row_larger_than_the_whole_budget_is_not_kept():
    """Nor does it push out what is there."""
    cache = cache_of(ROW_BYTES)
    cache.put(b"a", row(1), "v1")
    cache.put(b"b", np.zeros(9, np.float32), "v1")
    assert cache.get(b"a") is not None
    assert cache.get(b"b") is None


def test_a_row_is_kept_apart_from_the_matrix_it_came_in():
    """A later change to the answer does not reach the cache, nor is the matrix kept alive."""
    cache, matrix = cache_of(10 * ROW_BYTES), np.ones((4, 8), np.float32)
    cache.put(b"a", matrix[2], "v1")
    matrix[:] = 7
    kept = cache.get(b"a")
    np.testing.assert_array_equal(kept, row(1))
    assert kept.base is None


def test_rows_go_when_another_tower_is_heard_and_only_then():
    """A late answer of the replaced tower puts nothing back."""
    cache = cache_of(10 * ROW_BYTES)
    cache.put(b"a", row(1), "v1")
    cache.heard("v1")
    assert cache.get(b"a") is not None
    cache.heard("v2")
    assert cache.get(b"a") is None
    assert cache.held_bytes == 0
    cache.put(b"a", row(1), "v1")
    assert cache.get(b"a") is None
    cache.put(b"a", row(2), "v2")
    np.testing.assert_array_equal(cache.get(b"a"), row(2))


async def test_a_digest_tells_items_apart_and_is_the_same_off_the_event_loop():
    """One byte or one token more makes another key; large items are hashed in a thread."""
    large = bytes(LARGE_BYTES)
    keys = await digests([large, large + b"\0", b""])
    assert len(set(keys)) == 3
    assert (await digests([b""])) == keys[2:]
    texts = [np.array(ids, np.int32) for ids in ([1, 2], [2, 1], [1], [1, 2, 0])]
    assert len(set(await digests(texts))) == 4
