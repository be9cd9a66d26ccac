"""The last steps on a matrix of rows: truncate (Matryoshka), normalise, encode; needs no torch."""

from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deployments.model.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor

Rows = NDArray[np.float32]  # [n, width]
Row = NDArray[np.float32]  # [width]


def check_dimensions(dimensions: int | None, width: int) -> int:
    """Return the width asked for.

    Raises:
        OptionError: not from 1 to the model's full width.
    """
    if dimensions is None:
        return width
    is_whole = isinstance(dimensions, Integral) and not isinstance(dimensions, bool)
    if not (is_whole and 1 <= dimensions <= width):
        raise OptionError(f"dimensions is {dimensions!r:.40}; it must be from 1 to {width}")
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


def to_ubinary(rows: Rows) -> NDArray[np.uint8]:
    """Return the signs of rows [n, width], 1 for a positive number, as bits [n, width / 8].

    The most significant bit comes first, as in Jina's API and sentence-transformers. A width that
    8 does not divide is filled up with zeros.
    """
    return np.packbits(rows > 0, axis=1)


def to_binary(rows: Rows) -> NDArray[np.int8]:
    """Return `to_ubinary` minus 128: an offset, not two's complement (Jina's API)."""
    return (to_ubinary(rows) ^ np.uint8(128)).view(np.int8)


def to_int8(rows: Rows) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return rows [n, width] as whole numbers from -127 to 127, and the scale [n] of each row.

    `numbers * scale` is the row, off by at most half a scale. The scale is the row's largest
    absolute value / 127, so cosines need no scale and dot products need both.
    """
    scales = np.abs(rows).max(axis=1) / np.float32(127)
    divisors = np.where(scales > 0, scales, np.float32(1))
    return np.rint(rows / divisors[:, None]).astype(np.int8), scales.astype(np.float32)


def to_tensor(rows: Rows, device: str | None = None) -> "Tensor":
    """Return rows [n, width] as a float32 tensor on a device, by default the CPU; needs torch."""
    import torch

    return torch.from_numpy(rows.copy()).to(device or "cpu")
