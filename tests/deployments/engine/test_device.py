"""A tower on its device: what it computes is checked before and while it serves."""

import pytest

from deployments.config import AppConfig, ModelConfig
from deployments.engine.device import Device
from deployments.model import ClipModel


def config(**model):
    return AppConfig(model=ModelConfig(**model))


@pytest.mark.parametrize("tower", ["text", "vision"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tower_passes_its_self_check_in_the_precision_that_it_serves(tower, dtype):
    """Half precision is compared with float32 and is near, but not it."""
    cosine = Device(config(dtype=dtype), tower).selfcheck.cosine
    assert cosine >= 0.999
    assert (cosine > 0.99999) == (dtype == "float32")


def test_a_tower_that_computes_something_else_does_not_start(monkeypatch):
    """Every row reversed: the shipped golden vectors tell, though both runs agree."""
    embed = ClipModel.embed_pictures
    monkeypatch.setattr(ClipModel, "embed_pictures", lambda *args: embed(*args)[:, ::-1])
    with pytest.raises(RuntimeError, match="golden self-check"):
        Device(config(), "vision")


def test_a_kernel_that_is_wrong_in_half_precision_only_does_not_start(monkeypatch):
    """Weights without a golden file are held against the same tower in float32."""
    embed = ClipModel.embed_tokens

    def wrong(model, texts):
        rows = embed(model, texts)
        return rows[:, ::-1] if model.choices["dtype"] == "bfloat16" else rows

    monkeypatch.setattr(ClipModel, "embed_tokens", wrong)
    monkeypatch.setattr("deployments.engine.canary.golden", lambda *_: pytest.fail("not the demo"))
    from deployments.model.weights.source import DEMO

    with pytest.raises(RuntimeError, match="golden self-check"):
        Device(config(source=str(DEMO), dtype="bfloat16"), "text")


def test_a_tower_that_drifts_fails_its_health_check():
    """The weights change under a running replica; the next self-check makes it unhealthy."""
    device = Device(config(canary_period_s=1e-9), "vision")

    def check():
        """Begin a self-check, wait for it on the device's thread, and take its result."""
        device.check_health()
        device._thread.submit(int).result()
        device.check_health()

    check()
    weights = next(device.model._vision._tower.parameters())
    device._thread.submit(weights.data.mul_, -1).result()
    device._thread.submit(int).result()
    with pytest.raises(RuntimeError, match="golden self-check"):
        check()


async def test_a_tower_on_a_cpu_gives_memory_back_now_and_then(monkeypatch):
    """Once a period, however many batches there are."""
    trims = []
    monkeypatch.setattr("deployments.model.runtime.memory.trim", lambda: trims.append(1))
    device = Device(config(), "text")
    monkeypatch.setattr("deployments.engine.device.TRIM_PERIOD_S", 0)
    await device.run(int)
    assert len(trims) == 1
    monkeypatch.setattr("deployments.engine.device.TRIM_PERIOD_S", 3600)
    await device.run(int)
    assert len(trims) == 1
