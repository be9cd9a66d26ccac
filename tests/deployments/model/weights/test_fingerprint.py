"""Fingerprints change with what a vector depends on, and with nothing else."""

import json
import struct

import numpy as np
import pytest

from deployments.model.weights.fingerprint import (
    SAMPLE_BYTES,
    combine,
    preprocessing_digest,
    tower_digest,
    weights_of,
)

CHOICES = {"dtype": "float32", "text_attention": "sdpa"}


@pytest.fixture
def weights(tmp_path):
    """A file in the layout of safetensors, larger than all samples together."""
    header = json.dumps({"a": {"dtype": "F16", "shape": [3], "data_offsets": [0, 6]}}).encode()
    noise = np.random.default_rng(0).integers(0, 255, 100 * SAMPLE_BYTES, dtype=np.uint8)
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + noise.tobytes())
    return path


def test_weights_kernel_and_precision_change_a_towers_digest(weights):
    """The same file and choices give the same digest; other numbers, names or choices another."""
    digest = tower_digest(weights, CHOICES)
    assert digest == tower_digest(weights, dict(reversed(CHOICES.items())))
    others = [tower_digest(weights, CHOICES | {"dtype": "bfloat16"})]
    others.append(tower_digest(weights, CHOICES | {"text_attention": "flash2"}))
    assert {weights_of(other) for other in others} == {weights_of(digest)}
    data = bytearray(weights.read_bytes())
    data[12] ^= 1  # a letter of the header
    weights.write_bytes(data)
    others.append(tower_digest(weights, CHOICES))
    data[12] ^= 1
    every_number = np.frombuffer(bytes(data), np.uint8).copy()
    every_number[200:] ^= 1  # as training does: everywhere a little
    weights.write_bytes(every_number.tobytes())
    others.append(tower_digest(weights, CHOICES))
    assert len({digest, *others}) == 5
    assert len({weights_of(other) for other in (digest, *others)}) == 3


def test_a_file_shorter_than_its_header_claims_has_a_digest_too(tmp_path):
    """A broken file is left to the loader, which says what is wrong with it."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\xff" * 20)
    assert len(weights_of(tower_digest(path, {}))) == 16


def test_preprocessing_depends_on_every_file(tmp_path):
    """Contents and names count, and their order is the caller's."""
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    digest = preprocessing_digest(tmp_path, ("a", "b"))
    (tmp_path / "b").write_text("3")
    assert preprocessing_digest(tmp_path, ("a", "b")) != digest
    assert combine("x", "y") != combine("xy") != combine("y", "x")
