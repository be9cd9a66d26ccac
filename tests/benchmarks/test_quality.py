"""What a precision finds beside float32."""

import numpy as np
import pytest

from benchmarks.harness import quality
from deployments.model import ClipModel
from serve_app.gallery import gallery_images


class Noisy:
    """The same model with noise of half a row's length added to texts."""

    def __init__(self, model: ClipModel) -> None:
        self.choices = {"dtype": "noisy"}
        self.encode_image = model.encode_image
        self.model = model

    def encode_text(self, texts):
        rows = self.model.encode_text(texts)
        noise = np.random.default_rng(3).standard_normal(rows.shape) * 0.5 / rows.shape[1] ** 0.5
        noisy = (rows + noise).astype(np.float32)
        return noisy / np.linalg.norm(noisy, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def english(monkeypatch):
    monkeypatch.setattr(quality, "LANGUAGES", {"en": "English"})


def test_a_model_finds_what_it_finds(demo: ClipModel):
    """All figures are those of equality, and English names find their images."""
    same = quality.quality(demo, demo)
    names, phrases = same.found
    assert names.count == len(gallery_images())
    assert names.overlap == phrases.overlap == 100
    assert names.recall_1[0] == names.recall_1[1] > 99
    assert 50 < phrases.recall_1[0] <= phrases.recall_5[0]
    assert [x.least for x in same.closeness] == pytest.approx([1, 1], abs=1e-5)


def test_noise_is_seen_in_cosines_and_neighbours(demo: ClipModel):
    """Cosines fall to about 0.9, images stay, other images come among the ten nearest."""
    found = quality.quality(demo, Noisy(demo))
    texts, images = found.closeness
    assert 0.8 < texts.least < texts.mean < 0.95
    assert images.least == pytest.approx(1, abs=1e-5)
    assert all(x.overlap < 90 for x in found.found)
