"""No NaN and no infinity leaves a tower."""

import numpy as np
import pytest

from deployments.engine.finite import FiniteGuard
from deployments.errors import ServiceError


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_computed_again_alone(poison):
    """The neighbours keep their rows, the bad one gets the float32 result."""
    rows = np.ones((3, 4), dtype=np.float32)
    rows[1, 2] = poison
    asked = []

    def in_float32(item: str) -> np.ndarray:
        asked.append(item)
        return np.full(4, 7, dtype=np.float32)

    guard = FiniteGuard(in_float32)
    results = guard.check(["a", "b", "c"], rows)
    assert asked == ["b"]
    np.testing.assert_array_equal(results, [[1] * 4, [7] * 4, [1] * 4])
    assert (guard.recomputed, guard.failed) == (1, 0)


def test_a_row_that_float32_cannot_give_either_is_an_error():
    """The item fails with a counter; a vector with NaN is never returned."""
    guard = FiniteGuard(lambda _item: np.full(4, np.nan, dtype=np.float32))
    (result,) = guard.check(["a"], np.full((1, 4), np.nan, dtype=np.float32))
    assert isinstance(result, ServiceError)
    assert guard.failed == 1


def test_finite_rows_are_not_touched():
    """The usual case costs one check and no second computation."""
    guard = FiniteGuard(lambda item: pytest.fail(f"computed {item} again"))
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_array_equal(guard.check(list("abcde"), rows), rows)
