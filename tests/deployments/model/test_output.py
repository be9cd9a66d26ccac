"""Truncate, then normalise; against torch's own normalise."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deployments.model.errors import OptionError
from deployments.model.output import check_dimensions, finish

RAW = np.random.default_rng(4).normal(size=(5, 24)).astype(np.float32)


@pytest.mark.parametrize("width", range(1, 25))
def test_rows_are_cut_then_normalised(width) -> None:
    """Each width gives what torch's normalise gives on the cut rows."""
    expected = F.normalize(torch.from_numpy(RAW[:, :width]), dim=1).numpy()
    np.testing.assert_allclose(finish(RAW, width), expected, rtol=0, atol=1e-6)
    if width < 24:
        other_order = F.normalize(torch.from_numpy(RAW), dim=1).numpy()[:, :width]
        assert np.abs(finish(RAW, width) - other_order).max() > 1e-3


def test_raw_rows_are_only_cut() -> None:
    """Without normalising, the numbers stay as they are."""
    np.testing.assert_array_equal(finish(RAW, 7, normalized=False), RAW[:, :7])


def test_the_full_width_is_the_default() -> None:
    """None keeps every column, at length 1."""
    rows = finish(RAW)
    assert rows.shape == RAW.shape
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_a_row_of_zeros_stays_zero() -> None:
    """Nothing is divided by zero, and no NaN appears."""
    np.testing.assert_array_equal(finish(np.zeros((2, 3), np.float32)), np.zeros((2, 3)))


def test_the_input_is_left_alone_and_the_output_owns_its_rows() -> None:
    """The raw matrix can be cut again at another width; the result is contiguous float32."""
    before = RAW.copy()
    rows = finish(RAW, 5)
    np.testing.assert_array_equal(RAW, before)
    assert rows.flags.c_contiguous
    assert rows.dtype == np.float32


@pytest.mark.parametrize("dimensions", [0, -1, 25, 5000, True])
def test_widths_out_of_range_are_refused(dimensions) -> None:
    """The message holds the width asked for and the largest one."""
    with pytest.raises(OptionError, match=f"dimensions is {dimensions}; .* 1 to 24"):
        finish(RAW, dimensions)


def test_a_width_in_range_is_given_back() -> None:
    """None means the model's width; both ends of the range count."""
    assert [check_dimensions(x, 24) for x in (None, 1, 24)] == [24, 1, 24]
