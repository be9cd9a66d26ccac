"""Errors as they cross processes."""

import pickle

import pytest

from deployments.model import errors


def classes() -> list[type[Exception]]:
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    return [value for value in found if issubclass(value, errors.EmbeddingError)]


@pytest.mark.parametrize("kind", classes())
def test_an_error_survives_pickling(kind) -> None:
    """Type, message and arguments come back as they were sent."""
    back = pickle.loads(pickle.dumps(kind("image 3: the limit is 64")))
    assert type(back) is kind
    assert back.args == ("image 3: the limit is 64",)
    assert str(back) == "image 3: the limit is 64"


def test_the_tree_tells_the_callers_faults_from_the_operators() -> None:
    """What a caller can mend is an InputError and a ValueError; a bad checkpoint is neither."""
    mendable = {kind for kind in classes() if issubclass(kind, errors.InputError)}
    assert {errors.OptionError, errors.TextTooLongError, errors.ImageError} <= mendable
    assert all(issubclass(kind, ValueError) for kind in mendable)
    assert not issubclass(errors.CheckpointError, ValueError)
