"""The shipped checkpoint in int8 against the rows that third-party towers gave in float32."""

import numpy as np
import pytest
import torch

from deployments.engine.self_check import embed_all, shipped_rows
from deployments.model import ClipModel
from deployments.model.errors import OptionError
from deployments.model.towers.linear import int8_fault
from deployments.model.weights.source import DEMO

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(bool(int8_fault(CPU)), reason="a CPU without int8 products")


@pytest.fixture(scope="module")
def int8() -> ClipModel:
    return ClipModel.load("demo", dtype="int8")


@pytest.mark.parametrize(
    ("tower", "least_mean", "least"), [("text", 0.9995, 0.999), ("vision", 0.9990, 0.995)]
)
def test_rows_of_int8_keep_their_cosines(int8: ClipModel, tower, least_mean, least):
    """On average and at worst; and they are not those of float32."""
    batches, expected = shipped_rows(DEMO, tower)
    rows = embed_all(int8.embed_tokens if tower == "text" else int8.embed_pixels, batches)
    cosines = (rows * expected).sum(axis=1) / np.linalg.norm(rows, axis=1)
    assert cosines.mean() >= least_mean
    assert least <= cosines.min() < 0.99999


def test_int8_has_a_fingerprint_of_its_own(int8: ClipModel, demo: ClipModel):
    """No cache and no bulk job mixes its rows with others, those of bfloat16 included."""
    prints = {int8.fingerprint, demo.fingerprint, ClipModel.load(dtype="bfloat16").fingerprint}
    assert len(prints) == 3
    assert int8.choices["dtype"] == "int8"


def test_the_reference_in_int8_is_refused():
    """Before any weight is read."""
    with pytest.raises(OptionError, match="int8"):
        ClipModel.load("demo", dtype="int8", implementation="reference")


def test_without_a_compiler_rows_are_the_same_but_for_roundings(int8: ClipModel):
    """`compile="off"` runs the same sums one by one, slower."""
    plain = ClipModel.load("demo", dtype="int8", compile="off")
    texts = ["a red apple", "赤いリンゴ"]
    cosines = (int8.encode_text(texts) * plain.encode_text(texts)).sum(axis=1)
    assert (int8.choices["compile"], plain.choices["compile"]) == ("on", "off")
    assert cosines.min() > 0.9995
