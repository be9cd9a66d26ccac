"""The linear layer, through whichever library it goes."""

import pytest
import torch

from deployments.model import ClipModel
from deployments.model.errors import OptionError
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


needs_int8 = pytest.mark.skipif(
    bool(linear.int8_fault(torch.device("cpu"))), reason="a CPU without int8 products"
)


@needs_int8
@pytest.mark.parametrize("gelu", [False, True])
def test_an_int8_layer_is_near_the_exact_product_and_keeps_no_other_weight(gelu: bool):
    """Rows of very unlike size are each within 2% of their own; one layer is not the exact one."""
    layer = Linear(256, 40)
    x = torch.randn(2, 7, 256) * torch.tensor([1e-3, 1, 50]).repeat(5)[:14].view(2, 7, 1)
    exact = (layer.gelu(x) if gelu else layer(x)).detach()
    with torch.inference_mode():
        layer.quantise()
        found = layer.gelu(x) if gelu else layer(x)
    gaps = (found - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert layer.weight is None
    assert found.shape == exact.shape
    assert 1e-6 < gaps.max() < 0.02


@needs_int8
def test_an_int8_row_depends_on_no_other_row_and_stays_not_finite():
    """Its scale is its own; a row with a NaN gives NaN, and its neighbours do not."""
    layer, x = Linear(64, 32), torch.randn(5, 64)
    with torch.inference_mode():
        layer.quantise()
        alone = layer(x[1:2])
        x[0] *= 1000
        x[3, 7] = float("nan")
        together = layer(x)
    assert torch.equal(together[1:2], alone)
    assert together.isfinite().all(dim=1).tolist() == [True, True, True, False, True]


def test_int8_is_refused_by_name_where_it_does_not_run(monkeypatch: pytest.MonkeyPatch):
    """On a GPU, and on a CPU without the instructions."""
    assert "cuda" in linear.int8_fault(torch.device("cuda"))
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    with pytest.raises(OptionError, match="AVX512-VNNI nor AMX"):
        ClipModel.load("demo", dtype="int8")
