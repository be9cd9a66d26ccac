"""Fingerprints of the rotary tables at the published sizes."""

import math

import numpy as np
import pytest
import torch

from deployments.model.architecture import VisionArchitecture
from deployments.model.towers import text, vision

CPU = torch.device("cpu")
PUBLISHED = VisionArchitecture()
# token: cosines and sines of the row's and the column's first two frequencies (specification).
PATCHES = {
    1: ((1, 1, 0.902850, 0.968930), (0, 0, 0.429956, 0.247336)),
    36: ((0.902850, 0.968930, 1, 1), (0.429956, 0.247336, 0, 0)),
    1295: (
        (-0.988408, -0.779301, -0.988408, -0.779301),
        (0.151818, 0.626649, 0.151818, 0.626649),
    ),
}


def test_text_frequencies_are_the_published_ones() -> None:
    """At position 1 the angles are the inverse frequencies of base 20000."""
    cos, sin = text.rotary_tables(torch.tensor([1]), 64, 20000.0)
    frequencies = torch.atan2(sin, cos).flatten()
    assert len(frequencies) == 32
    expected = {0: 1.0, 1: 0.73382552, 2: 0.53849990, 15: 9.6358979e-3, 31: 6.8136087e-5}
    for index, value in expected.items():
        assert frequencies[index].item() == pytest.approx(value, rel=2e-6)


def test_another_base_misses_the_fingerprint() -> None:
    """Base 10000 gives other frequencies, so the fingerprint tells them apart."""
    cos, sin = text.rotary_tables(torch.tensor([1]), 64, 10000.0)
    frequencies = torch.atan2(sin, cos).flatten()
    assert abs(frequencies[1].item() - 0.73382552) > 1e-2


def test_text_angles_grow_with_the_position() -> None:
    """Position p turns pair i by p times its frequency, exactly enough at 8191 tokens."""
    positions = torch.tensor([0, 1, 511, 8191])
    cos, sin = text.rotary_tables(positions, 64, 20000.0)
    assert cos.shape == sin.shape == (4, 1, 32)
    assert cos.dtype == sin.dtype == torch.float32
    frequencies = 20000.0 ** (-np.arange(32) / 32)
    angles = positions.numpy().astype(float)[:, None] * frequencies
    np.testing.assert_allclose(cos[:, 0], np.cos(angles), atol=1e-3)
    np.testing.assert_allclose(sin[:, 0], np.sin(angles), atol=1e-3)


def test_vision_tables_are_the_published_ones() -> None:
    """Rows turn the first half of the pairs, columns the second; CLS is not turned."""
    cos, sin = vision.rotary_tables(PUBLISHED, CPU)
    assert cos.shape == sin.shape == (1297, 1, 32)
    assert torch.equal(cos[0], torch.ones(1, 32))
    assert torch.equal(sin[0], torch.zeros(1, 32))
    for patch, (cosines, sines) in PATCHES.items():
        places = torch.tensor([0, 1, 16, 17])
        np.testing.assert_allclose(cos[1 + patch, 0, places], cosines, atol=2e-6)
        np.testing.assert_allclose(sin[1 + patch, 0, places], sines, atol=2e-6)


def test_unscaled_positions_miss_the_fingerprint() -> None:
    """Without mapping 36 positions on 16, patch 1 turns by 1 radian instead of 16 / 36."""
    cos, _ = vision.rotary_tables(VisionArchitecture(pretrained_grid=36), CPU)
    assert cos[2, 0, 16].item() == pytest.approx(math.cos(1), abs=1e-6)
    assert abs(cos[2, 0, 16].item() - 0.902850) > 0.1
