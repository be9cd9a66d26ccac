"""The linear layer, through whichever library it goes."""

import pytest
import torch

from deployments.model.towers import linear
from deployments.model.towers.linear import Linear


def test_the_linear_layer_equals_torchs_own(monkeypatch: pytest.MonkeyPatch):
    """Both libraries give the same product, whichever this build of torch has."""
    layer = Linear(24, 40)
    x = torch.randn(7, 24)
    expected = (x.double() @ layer.weight.double().T + layer.bias.double()).detach()
    with torch.inference_mode():
        monkeypatch.setattr(linear, "ONEDNN", False)
        layer.arrange()
        assert layer.weight is not None
        torch.testing.assert_close(layer(x).double(), expected, atol=1e-5, rtol=0)
        monkeypatch.undo()
        layer.arrange()
        torch.testing.assert_close(layer(x).double(), expected, atol=1e-5, rtol=0)
        assert (layer.weight is None) == linear.ONEDNN  # there is one copy of it


def test_bfloat16_weights_are_arranged_once_and_not_kept_twice(monkeypatch: pytest.MonkeyPatch):
    """The product stays that of bfloat16 weights; a processor without it keeps the plain layer."""
    layer = Linear(64, 40, dtype=torch.bfloat16)
    x = torch.randn(7, 64, dtype=torch.bfloat16)
    expected = (x.double() @ layer.weight.double().T + layer.bias.double()).detach()
    with torch.inference_mode():
        monkeypatch.setattr(linear, "ONEDNN", False)
        layer.arrange()
        assert layer.weight is not None
        monkeypatch.undo()
        layer.arrange()
        torch.testing.assert_close(layer(x).double(), expected, atol=1e-2, rtol=1e-2)
        has_bfloat16 = linear.ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        assert (layer.weight is None) == has_bfloat16


@pytest.mark.parametrize("arranged", [True, False])
def test_gelu_is_the_exact_one_of_the_product(arranged: bool):
    """In one pass or in two; the tanh form would differ by 1e-4 and more."""
    layer = Linear(24, 40)
    x = 3 * torch.randn(500, 24)
    product = x.double() @ layer.weight.double().T + layer.bias.double()
    expected = (product * 0.5 * (1 + torch.erf(product / 2**0.5))).detach()
    with torch.inference_mode():
        if arranged:
            layer.arrange()
        torch.testing.assert_close(layer.gelu(x).double(), expected, atol=2e-6, rtol=1e-5)
        tanh = torch.nn.functional.gelu(product, approximate="tanh")
    assert (tanh - expected).abs().max() > 1e-4
