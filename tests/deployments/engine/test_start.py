"""A tower is checked before it serves."""

from types import SimpleNamespace

import pytest
import torch

from deployments.config import AppConfig, ModelConfig
from deployments.engine.inputs import ImageInputs, TextInputs
from deployments.engine.start import PLAIN, next_way, start
from deployments.model import ClipModel
from deployments.model.towers.linear import int8_fault


def check_of(tower, **model):
    """Start a tower and return its self-check."""
    config = AppConfig(model=ModelConfig(**model))
    inputs = TextInputs(config) if tower == "text" else ImageInputs(config, 10**6)
    return start(config, inputs)[1]


@pytest.mark.parametrize("tower", ["text", "vision"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tower_passes_its_self_check_in_the_precision_that_it_serves(tower, dtype):
    """Half precision is compared with float32 and is near, but not it."""
    cosine = check_of(tower, dtype=dtype).cosine
    assert cosine >= 0.999
    assert (cosine > 0.99999) == (dtype == "float32")


@pytest.mark.skipif(bool(int8_fault(torch.device("cpu"))), reason="a CPU without int8 products")
@pytest.mark.parametrize("tower", ["text", "vision"])
def test_int8_passes_within_limits_of_its_own_and_without_a_warning(tower, caplog):
    """What is usual for int8 is no cause for a warning at every start."""
    with caplog.at_level("WARNING", logger="ray.serve"):
        assert 0.995 <= check_of(tower, dtype="int8", compile="off").cosine < 0.9999
    assert "self-check" not in caplog.text


def reversed_rows(pending):
    return SimpleNamespace(rows=lambda: pending.rows()[:, ::-1])


def test_a_tower_that_computes_something_else_does_not_start(monkeypatch):
    """Every row reversed: the shipped rows tell, though both runs agree."""
    launch = ClipModel.launch_pixels
    monkeypatch.setattr(ClipModel, "launch_pixels", lambda *args: reversed_rows(launch(*args)))
    with pytest.raises(RuntimeError, match="self-check"):
        check_of("vision")


def test_a_tower_that_is_wrong_in_half_precision_only_serves_in_float32(monkeypatch):
    """Weights without known rows are held against float32, which is what is left in the end."""
    launch = ClipModel.launch_tokens

    def wrong(model, texts):
        pending = launch(model, texts)
        return reversed_rows(pending) if model.choices["dtype"] == "bfloat16" else pending

    monkeypatch.setattr(ClipModel, "launch_tokens", wrong)
    monkeypatch.setattr(
        "deployments.engine.self_check.shipped_rows", lambda *_: pytest.fail("not the demo")
    )
    from deployments.model.weights.source import DEMO

    config = AppConfig(model=ModelConfig(source=str(DEMO), dtype="bfloat16"))
    model, check = start(config, TextInputs(config))
    assert model.choices["dtype"] == "float32"
    assert check.cosine == pytest.approx(1)


def test_plainer_ways_are_tried_in_order_down_to_float32():
    """The compiler goes first, then the attention kernel, then half precision."""
    choices = {"compile": "on", "text_attention": "varlen+flash4", "dtype": "bfloat16"}
    ways = []
    while (way := next_way(SimpleNamespace(choices=choices), "text")) is not None:
        ways.append(way)
        choices |= way | {"text_attention": way.get("attention", choices["text_attention"])}
    assert ways == [{"compile": "off"}, {"compile": "off", "attention": "sdpa"}, PLAIN]
