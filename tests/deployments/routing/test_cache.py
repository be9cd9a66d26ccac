"""The cache of rows: what it keeps, what leaves first, and that it stays within its budget."""

import numpy as np

from deployments.routing.cache import ENTRY_BYTES, RowCache

ROW_BYTES = 4 * 8 + ENTRY_BYTES


def row(value: float):
    return np.full(8, value, np.float32)


def test_a_cache_of_no_bytes_keeps_nothing():
    """The default is off."""
    cache = RowCache(0)
    cache.put(b"a", row(1))
    assert cache.get(b"a") is None
    assert cache.held_bytes == 0


def test_the_least_recently_used_row_leaves_first():
    """With room for two, the one asked for last stays when a third comes."""
    cache = RowCache(2 * ROW_BYTES)
    cache.put(b"a", row(1))
    cache.put(b"b", row(2))
    assert cache.get(b"a") is not None
    cache.put(b"c", row(3))
    assert cache.get(b"b") is None
    np.testing.assert_array_equal(cache.get(b"a"), row(1))
    np.testing.assert_array_equal(cache.get(b"c"), row(3))


def test_the_budget_holds_whatever_is_put():
    """A thousand rows, some put twice, take no more than allowed, and the newest are there."""
    cache = RowCache(10 * ROW_BYTES + 5)
    for number in range(1000):
        cache.put(b"%d" % number, row(number))
        cache.put(b"%d" % (number // 2), row(number // 2))
        assert cache.held_bytes <= 10 * ROW_BYTES + 5
    assert cache.held_bytes == 10 * ROW_BYTES
    assert cache.get(b"999") is not None


def test_a_row_is_kept_apart_from_the_matrix_it_came_in():
    """A later change to the answer does not reach the cache, nor is the matrix kept alive."""
    cache, matrix = RowCache(10 * ROW_BYTES), np.ones((4, 8), np.float32)
    cache.put(b"a", matrix[2])
    matrix[:] = 7
    kept = cache.get(b"a")
    np.testing.assert_array_equal(kept, row(1))
    assert kept.base is None
