"""The deployment `VisionTower`: what it passes on, with no Ray running."""

from types import SimpleNamespace

import numpy as np
import pytest

from deployments.config import AppConfig
from deployments.messages import ImageChunk, Terms
from deployments.vision_tower import VisionTower


@pytest.fixture
def tower(monkeypatch, counted):
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="abc"))
    monkeypatch.setattr("deployments.vision_tower.serve.get_replica_context", lambda: context)
    return VisionTower(AppConfig())


async def test_images_are_decoded_and_answered_with_replica_and_fingerprint(tower, golden, counted):
    """The rows are the published ones, a broken image fails alone, and the metrics have both."""
    first, second = golden.image_bytes()[:2]
    (part,) = await tower.embed([ImageChunk((first, b"broken", second), Terms("bulk", 60))])
    expected = golden.arrays["image_raw"][:2]
    np.testing.assert_allclose(part.rows[[0, 2]], expected, rtol=0, atol=1e-5)
    assert list(part.failures) == [1]
    assert part.replica == "vision:abc"
    assert part.fingerprint == await tower.ready()
    assert counted["jina_clip_tower_images",] == 2
    assert counted["jina_clip_tower_decode_seconds",] > 0
    assert await tower.record_autoscaling_stats() == {"queued_images": 0.0, "images_per_s": 0.0}


def test_a_health_check_fails_with_the_engine(tower):
    """Serve replaces a replica whose rows are wrong."""
    tower.check_health()
    tower._engine.self_check.cosine, tower._engine.self_check._has_drifted = 0.5, True
    with pytest.raises(RuntimeError, match="self-check"):
        tower.check_health()
