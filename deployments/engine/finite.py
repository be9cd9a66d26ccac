"""No NaN and no infinity leaves a tower: such a row is computed again, alone, in float32."""

import logging
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np

from deployments.errors import ServiceError
from deployments.model.output import Row, Rows

T = TypeVar("T")

logger = logging.getLogger("ray.serve")


class FiniteGuard(Generic[T]):
    """Checks each row of a batch.

    Args:
        in_float32: computes one item alone in float32.
    """

    def __init__(self, in_float32: Callable[[T], Row]) -> None:
        self.recomputed = 0
        self.failed = 0
        self._in_float32 = in_float32

    def check(self, items: Sequence[T], rows: Rows) -> list[Row | Exception]:
        """Return a finite row for each item, or an error where float32 gives none either."""
        results: list[Row | Exception] = list(rows)
        for index in np.flatnonzero(~np.isfinite(rows).all(axis=1)):
            results[index] = self._again(items[int(index)])
        return results

    def _again(self, item: T) -> Row | Exception:
        self.recomputed += 1
        logger.warning("a row was not finite; computing it alone in float32")
        row = self._in_float32(item)
        if np.isfinite(row).all():
            return row
        self.failed += 1
        return ServiceError("the model gives no finite vector for this item, not even in float32")
