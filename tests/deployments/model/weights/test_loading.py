"""How much of a tower is in memory twice while it is loaded."""

import pytest
import torch

from deployments.model import ClipModel
from deployments.model.architecture import Architecture, TextArchitecture, VisionArchitecture
from deployments.model.runtime.hardware import weight_bytes
from deployments.model.towers import linear
from deployments.model.towers.linear import Linear, int8_fault
from deployments.model.weights.checkpoint import Checkpoint
from deployments.model.weights.loading import place

needs_onednn = pytest.mark.skipif(not linear.ONEDNN, reason="a torch without oneDNN")
needs_int8 = pytest.mark.skipif(bool(int8_fault(torch.device("cpu"))), reason="no int8 here")


def most_plain_layers(monkeypatch, **options):
    """Load a model; return how many linear layers held a plain weight at a time, at the most."""
    layers, counts = [], []
    make, read = Linear.__init__, Checkpoint._read

    def making(layer, *sizes, **options):
        make(layer, *sizes, **options)
        layers.append(layer)

    def counting(checkpoint, name):
        weights = [x.weight for x in layers if x.weight is not None]
        counts.append(sum(x.device.type == "cpu" and x.dtype == torch.float32 for x in weights))
        return read(checkpoint, name)

    monkeypatch.setattr(Linear, "__init__", making)
    monkeypatch.setattr(Checkpoint, "_read", counting)
    ClipModel.load("demo", **options)
    return max(counts)


@pytest.mark.parametrize("tower", ["text", "vision"])
@pytest.mark.parametrize(
    "dtype",
    [pytest.param("float32", marks=needs_onednn), pytest.param("int8", marks=needs_int8)],
)
def test_one_block_at_a_time_is_in_its_plain_form(monkeypatch, tower, dtype):
    """A block has four linear layers; the next one is read when they are packed or quantised."""
    assert most_plain_layers(monkeypatch, towers=(tower,), dtype=dtype) == 4


def test_a_tower_that_is_compiled_keeps_its_plain_weights(monkeypatch):
    """The control: at the last tensor, the layers of all five blocks."""
    assert most_plain_layers(monkeypatch, towers=("text",), compile="on") == 4 * 5


@needs_int8
@pytest.mark.parametrize(
    ("tower", "weights", "halves"),
    [("text", 302_000_000, 0), ("vision", 304_000_000, 24 * 2730 * 1024)],
)
def test_the_estimate_of_int8_is_a_byte_for_a_weight(tower, weights, halves):
    """At full size, without the word embedding, which stays in the file; 1% for the rest.

    The last layer of each block of the vision tower keeps two bytes.
    """
    arch = Architecture(TextArchitecture(), VisionArchitecture(), ())
    sizes = {x: weight_bytes(arch, tower, place("cpu", x)) for x in ("float32", "int8")}
    assert sizes["int8"] == pytest.approx(weights + halves, rel=0.01)
    assert sizes["float32"] == pytest.approx(4 * weights, rel=0.01)
