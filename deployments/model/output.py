"""The last steps on a matrix of rows: truncate (Matryoshka), then normalise; needs no torch."""

import numpy as np
from numpy.typing import NDArray

from deployments.model.errors import OptionError

Rows = NDArray[np.float32]  # [n, width]
Row = NDArray[np.float32]  # [width]


def check_dimensions(dimensions: int | None, width: int) -> int:
    """Return the width asked for.

    Raises:
        OptionError: not from 1 to the model's full width.
    """
    if dimensions is None:
        return width
    if isinstance(dimensions, bool) or not 1 <= dimensions <= width:
        raise OptionError(f"dimensions is {dimensions}; it must be from 1 to {width}")
    return dimensions


def finish(rows: Rows, dimensions: int | None = None, normalized: bool = True) -> Rows:
    """Cut float32 rows [n, width] to `dimensions`, then scale them to length 1 if asked.

    A row of zeros stays zero, as in torch's `normalize`.

    Raises:
        OptionError: dimensions out of range.
    """
    rows = rows[:, : check_dimensions(dimensions, rows.shape[1])]
    if normalized:
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows / np.maximum(lengths, 1e-12)
    return np.ascontiguousarray(rows, dtype=np.float32)
