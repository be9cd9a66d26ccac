"""The deployment `TextTower`: what it passes on, with no Ray running."""

from types import SimpleNamespace

import numpy as np
import pytest

from deployments.config import AppConfig
from deployments.messages import Terms, TextChunk
from deployments.text_tower import TextTower


@pytest.fixture
def tower(monkeypatch, counted):
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="abc"))
    monkeypatch.setattr("deployments.text_tower.serve.get_replica_context", lambda: context)
    return TextTower(AppConfig())


async def test_chunks_of_one_call_are_answered_with_replica_and_fingerprint(tower, demo, counted):
    """The rows are the model's, and the metrics have the tokens."""
    texts = demo.tokenizer.encode(["red apple", "a dog"])
    terms = Terms("interactive", 60)
    answers = await tower.embed([TextChunk.of([ids], terms) for ids in texts])
    rows = [part.rows[0] for part in answers]
    np.testing.assert_allclose(rows, demo.embed_tokens(texts), rtol=0, atol=1e-5)
    assert {part.replica for part in answers} == {"text:abc"}
    assert {part.fingerprint for part in answers} == {await tower.ready()}
    assert counted["jina_clip_tower_tokens",] == sum(map(len, texts))
    assert await tower.record_autoscaling_stats() == {"queued_tokens": 0.0, "tokens_per_s": 0.0}


def test_a_health_check_sets_the_gauges_and_fails_with_the_engine(tower, counted):
    """A wrong cosine is shown before Serve replaces the replica."""
    tower.check_health()
    assert counted["jina_clip_tower_self_check_cosine",] > 0.999
    tower._engine.self_check.cosine, tower._engine.self_check._has_drifted = float("nan"), True
    counted.clear()
    with pytest.raises(RuntimeError, match="self-check"):
        tower.check_health()
    assert counted["jina_clip_tower_self_check_cosine",] == -1
