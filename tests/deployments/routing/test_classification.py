"""Labels of a request, and the scores that come from rows."""

import numpy as np
import pytest

from deployments.errors import RequestError
from deployments.messages import Embeddings, Usage
from deployments.routing.classification import Labels, classified, with_labels

ROWS = np.random.default_rng(3).normal(size=(7, 16)).astype(np.float32)
ROWS /= np.linalg.norm(ROWS, axis=1, keepdims=True)


def answer() -> Embeddings:
    return Embeddings(ROWS, Usage(9, 1), fingerprint="text:a")


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_scores_are_the_softmax_of_scaled_cosines(scale):
    """In float64, by the formula; of an item they add up to 1."""
    labels = Labels.read(["a", "b", "c"], 512)
    found = classified(answer(), labels, scale)
    cosines = ROWS[:4].astype(np.float64) @ ROWS[4:].T.astype(np.float64)
    expected = np.exp(scale * cosines) / np.exp(scale * cosines).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.similarities, cosines, atol=1e-6)
    np.testing.assert_allclose(found.scores, expected, atol=1e-5)
    np.testing.assert_allclose(found.scores.sum(axis=1), 1, atol=1e-6)


def test_the_labels_of_a_group_compete_with_each_other_only():
    """A group of two and one of three: each adds up to 1, as if it were asked alone."""
    grouped = Labels.read({"colour": ["red", "blue"], "kind": ["a", "b", "c"]}, 512)
    assert grouped.groups == ("colour", "colour", "kind", "kind", "kind")
    found = classified(answer(), grouped, 1.0)
    np.testing.assert_allclose(found.scores[:, :2].sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found.scores[:, 2:].sum(axis=1), 1, atol=1e-6)
    alone = Embeddings(np.delete(ROWS, [2, 3], axis=0), Usage(0, 0))
    kind = classified(alone, Labels.read(["a", "b", "c"], 512), 1.0)
    np.testing.assert_allclose(found.scores[:, 2:], kind.scores, atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("red", "no list of texts"),
        (None, "no list of texts"),
        (["red"], "has 1 labels"),
        (["red", "red"], "1 of them different"),
        (["red", " "], r"labels\[1\] is ' '; send a text that is not empty"),
        (["red", 3], r"labels\[1\] is 3; send a text"),
        ({"g": [{"text": "red"}, "blue"]}, r"labels\.g\[0\] is {'text': 'red'}; send a text"),
        ({}, "has no group"),
        ({"colour": ["red"]}, r"labels\.colour has 1 labels"),
        ([str(x) for x in range(513)], "513 labels; the limit is 512"),
        ({"a": [str(x) for x in range(400)], "b": [str(x) for x in range(400)]}, "800 labels"),
    ],
)
def test_labels_that_are_no_choice_are_refused(labels, message):
    """The message says what was sent and what to send."""
    with pytest.raises(RequestError, match=message):
        Labels.read(labels, 512)


def test_items_are_counted_before_anything_is_embedded():
    """Labels stand behind them; what is no list is left to the Router."""
    labels = Labels.read(["a", "b"], 3)
    assert len(with_labels(["x", "y"], labels, 3)) == 4
    assert with_labels("x", labels, 3) == "x"
    assert with_labels([], labels, 3) == []
    with pytest.raises(RequestError, match="4 items; the limit is 3 with labels"):
        with_labels(["x"] * 4, labels, 3)
