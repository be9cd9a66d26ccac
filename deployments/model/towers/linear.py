"""A linear layer that takes the faster of torch's two matrix libraries on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The operators that torch.compile puts in for linear layers. In float32, plain layers go to MKL,
# which is 4 to 17% slower at the towers' shapes on the processors measured (benchmarks/README.md).
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Linear(nn.Linear):
    """`nn.Linear`, through oneDNN on a CPU."""

    _arranged: Tensor | None = None

    def arrange(self) -> None:
        """Keep the weight only in the order in which oneDNN reads it, where that is used.

        Otherwise every call puts it into that order: 2 to 3% of the time of a large batch, and a
        third of that of a single query (benchmarks/README.md).
        """
        if self.weight.device.type == "cpu" and _has_order(self.weight.dtype):
            self._arranged = torch.ops.mkldnn._reorder_linear_weight(self.weight)
            self.register_parameter("weight", None)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x @ weight.T + bias` over the last dimension."""
        weight = self._arranged
        if weight is None:
            return super().forward(x)
        return _pointwise(x, weight, self.bias, "none")

    def gelu(self, x: Tensor) -> Tensor:
        """Return the exact (erf) GELU of `forward`; oneDNN does it in the same pass."""
        weight = self._arranged
        if weight is None:
            return F.gelu(super().forward(x))
        return _pointwise(x, weight, self.bias, "gelu")


def _has_order(dtype: torch.dtype) -> bool:
    """Tell whether oneDNN multiplies in a precision here; bfloat16 takes AVX-512 or better."""
    if not ONEDNN or dtype not in (torch.float32, torch.bfloat16):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    # "none" is also the name of GELU's exact form.
    out: Tensor = torch.ops.mkldnn._linear_pointwise.default(
        x, weight, bias, activation, [], "none" if activation == "gelu" else ""
    )
    return out


def arrange(tower: nn.Module) -> None:
    """Prepare all linear layers of a tower whose weights are final and which is not compiled."""
    for module in tower.modules():
        if isinstance(module, Linear):
            module.arrange()
