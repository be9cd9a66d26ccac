"""A linear layer that takes the faster of torch's two matrix libraries on a CPU."""

import torch
from torch import Tensor, nn

# The operator that torch.compile puts in for linear layers. In float32, plain layers go to MKL,
# which is 4 to 17% slower at the towers' shapes on the processors measured (benchmarks/README.md).
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Linear(nn.Linear):
    """`nn.Linear`, through oneDNN for float32 on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `x @ weight.T + bias` over the last dimension."""
        exact = x.dtype == torch.float32 and x.device.type == "cpu"
        if not (ONEDNN and exact) or torch.compiler.is_compiling():
            return super().forward(x)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out
