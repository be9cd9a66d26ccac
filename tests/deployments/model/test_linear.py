"""The linear layer, through whichever library it goes."""

import pytest
import torch

from deployments.model import linear
from deployments.model.linear import Linear


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
