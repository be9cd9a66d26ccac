"""The towers of a given pace: real engines, whose model answers without computing."""

from contextlib import nullcontext

import numpy as np
import pytest
from ray._common.utils import import_attr

from benchmarks.harness import h100, paced
from deployments.config import AppConfig
from deployments.engine.engine import TowerEngine
from deployments.engine.inputs import ImageInputs, TextInputs
from deployments.messages import ImageChunk, Terms, TextChunk
from serve_app import launch

TERMS = Terms("interactive", 60)


@pytest.fixture(params=["text", "vision"])
def engine_and_chunk(request):
    config = AppConfig()
    with paced.paced_engine():
        if request.param == "text":
            texts = [np.array([0, 5, 2], np.int32)] * 3
            return TowerEngine(config, TextInputs(config)), TextChunk.of(texts, TERMS)
        inputs = ImageInputs(config, config.images.max_pixels)
        return TowerEngine(config, inputs), ImageChunk((b"a", b"b", b"c"), TERMS)


async def test_an_engine_answers_each_item(engine_and_chunk):
    """One finite row for each, through the queue, the device's thread and the collector."""
    engine, chunk = engine_and_chunk
    answer = await engine.embed(chunk)
    assert answer.rows.shape == (3, engine.model.width)
    assert not answer.failures
    assert np.isfinite(answer.rows).all()
    assert not engine._device.is_cpu


def test_batches_follow_each_other_at_the_pace():
    """The next is done by its own cost after the one before; a small one takes the least time."""
    model = paced.PacedModel(AppConfig())
    ends_s = [model.launch_pixels([b""] * 45).end_s for _ in range(2)]
    assert ends_s[1] - ends_s[0] == pytest.approx(45 / h100.IMAGES_PER_S)
    text = np.zeros(8, np.int32)
    assert model.launch_tokens([text]).end_s - ends_s[1] == pytest.approx(h100.CALL_S)


@pytest.mark.parametrize("is_paced", [True, False])
def test_an_application_that_serve_builds_by_its_path_has_paced_towers_too(is_paced):
    """Serve imports what has an autoscaling policy in a process of its own."""
    with paced.towers() if is_paced else nullcontext():
        path = launch.spec(AppConfig())["import_path"]
    builder = import_attr(path)
    deployments = builder(AppConfig())._bound_deployment.init_kwargs
    names = {deployments[x]._bound_deployment.func_or_class.__name__ for x in ("text", "vision")}
    expected = {"PacedTextTower", "PacedVisionTower"} if is_paced else {"TextTower", "VisionTower"}
    assert names == expected
