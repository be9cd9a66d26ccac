"""A linear layer that takes the faster of torch's two matrix libraries on a CPU, or int8."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The operators that torch.compile puts in for linear layers. In float32, plain layers go to MKL,
# which is 4 to 17% slower at the towers' shapes on the processors measured (benchmarks/README.md).
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


STEPS = 127  # of an int8 value to either side of zero
ZERO = 128  # oneDNN is fast with unsigned rows only; this value of theirs is zero


class Int8Product:
    """`x @ weight.T + bias` from int8: a scale for each output channel, and for each row of x.

    A row's scale comes from that row alone, so a vector does not depend on the rest of its batch.
    Blocks are compiled around it: quantising and scaling then cost one pass with their neighbours.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        exact = weight.float()
        self._scale = exact.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / STEPS
        whole = (exact / self._scale[:, None]).round().to(torch.int8)
        self._packed = torch.ops.onednn.qlinear_prepack(whole, None)
        self._zeros = torch.zeros(len(weight), dtype=torch.int64)
        self._bias = bias.float()

    def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
        """Return the product over the last dimension, or its exact GELU, in the dtype of x."""
        rows, row_scales = int8_rows(x.flatten(0, -2))
        sums = torch.ops.jina_clip_serve.int8_product(rows, self._packed, self._scale, self._zeros)
        scaled = sums * row_scales + self._bias
        if gelu:
            scaled = F.gelu(scaled)
        out: Tensor = scaled.to(x.dtype).view(*x.shape[:-1], -1)
        return out


# The compiler takes oneDNN's product with weights that are constants only; blocks share one
# compilation, so that theirs are inputs.
torch.library.define(
    "jina_clip_serve::int8_product",
    "(Tensor rows, Tensor packed, Tensor scale, Tensor zeros) -> Tensor",
)


@torch.library.impl("jina_clip_serve::int8_product", "default")
def _int8_product(rows: Tensor, packed: Tensor, scale: Tensor, zeros: Tensor) -> Tensor:
    sums: Tensor = torch.ops.onednn.qlinear_pointwise.default(
        *(rows, 1.0, ZERO, packed, scale, zeros, None),
        *(1.0, 0, torch.float32, "none", [], ""),
    )
    return sums


def _int8_sums(rows: Tensor, packed: Tensor, scale: Tensor, zeros: Tensor) -> Tensor:
    return rows.new_empty((rows.shape[0], scale.shape[0]), dtype=torch.float32)


torch.library.register_fake("jina_clip_serve::int8_product", _int8_sums)


def int8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return uint8 rows around `ZERO`, and the float32 scale of each, [T, 1]; NaN stays in it."""
    exact = x.float()
    scales = exact.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30) / STEPS
    return ((exact / scales).round() + ZERO).to(torch.uint8), scales


class Linear(nn.Linear):
    """`nn.Linear`, through oneDNN on a CPU.

    Args:
        in_features, out_features, dtype: as in `nn.Linear`.
        has_int8: false for a layer that keeps its dtype in a tower of int8.
    """

    _arranged: Tensor | None = None
    _int8: Int8Product | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        dtype: torch.dtype | None = None,
        has_int8: bool = True,
    ) -> None:
        super().__init__(in_features, out_features, dtype=dtype)
        self.has_int8 = has_int8

    def quantise(self) -> None:
        """Keep the weight as int8 only."""
        self._int8 = Int8Product(self.weight, self.bias)
        self.register_parameter("weight", None)

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
        if self._int8 is not None:
            return self._int8(x)
        weight = self._arranged
        if weight is None:
            return super().forward(x)
        return _pointwise(x, weight, self.bias, "none")

    def gelu(self, x: Tensor) -> Tensor:
        """Return the exact (erf) GELU of `forward`; oneDNN does it in the same pass."""
        if self._int8 is not None:
            return self._int8(x, gelu=True)
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


def arrange(tower: nn.Module, int8: bool = False) -> None:
    """Prepare all linear layers of a tower whose weights are final and which is not compiled."""
    for module in tower.modules():
        if isinstance(module, Linear):
            if not int8:
                module.arrange()
            elif module.has_int8:
                module.quantise()


def int8_fault(device: torch.device) -> str:
    """Return why int8 products are not to be had on a device, or nothing."""
    if device.type != "cpu":
        return f"it is for CPUs, and the device is {device}"
    if not (torch.cpu._is_vnni_supported() or torch.cpu._is_amx_tile_supported()):
        return "this CPU has neither AVX512-VNNI nor AMX"
    if not (ONEDNN and hasattr(torch.ops.onednn, "qlinear_pointwise")):
        return "this build of torch has no oneDNN"
    return ""
