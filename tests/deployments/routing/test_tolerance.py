"""Which failures end a request, and by which name."""

import pytest

from deployments.model.errors import ImageError, TextTooLongError
from deployments.routing.tolerance import Tolerance

BROKEN, LONG = ImageError("broken"), TextTooLongError("too long")


def test_without_partial_the_first_failure_is_raised():
    """As an error of its own kind, with the index of its item."""
    with pytest.raises(ImageError, match="item 1: broken"):
        Tolerance(False, 3).check({2: LONG, 1: BROKEN})
    Tolerance(False, 3).check({})


def test_with_partial_only_a_label_ends_the_request():
    """By its own number: labels stand behind the items."""
    Tolerance(True, 3).check({1: BROKEN, 2: LONG})
    with pytest.raises(TextTooLongError, match="label 2: too long"):
        Tolerance(True, 3).check({1: BROKEN, 5: LONG})
