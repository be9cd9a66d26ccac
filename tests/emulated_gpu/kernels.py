"""What the emulated GPU computes for operators that a CPU does not have."""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

aten = torch.ops.aten
HALVES = (torch.float16, torch.bfloat16)


def by_segment(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int) -> Tensor:
    """Attend within each text [T, H, D]; what no text covers stays NaN, as garbage does."""
    out = torch.full(q.shape, float("nan"), dtype=q.dtype)
    places = bounds.tolist()
    for start, end in pairwise(places):
        assert 0 <= end - start <= longest, (start, end, longest)
        if end > start:
            parts = (x[start:end].transpose(0, 1)[None].float() for x in (q, k, v))
            out[start:end] = F.scaled_dot_product_attention(*parts)[0].transpose(0, 1).to(q.dtype)
    return out


def flash_shape(q: Tensor, *_: Any, **__: Any) -> tuple[Tensor, ...]:
    seed = torch.empty(2, dtype=torch.uint64, device="meta")
    sums = torch.empty(q.shape[1], q.shape[0], device="meta")
    return torch.empty(q.shape, dtype=q.dtype, device="meta"), sums, seed, seed, seed


def flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Tensor,
    _: Tensor,
    longest: int,
    *__: Any,
    num_splits: int | None = None,
    **___: Any,
) -> tuple[Tensor, ...]:
    """Run FlashAttention-2 on packed texts: half precision, int32 bounds, heads of 8 numbers."""
    assert q.dim() == 3
    assert bounds.dtype == torch.int32
    assert q.dtype in HALVES
    assert q.shape[-1] % 8 == 0
    assert all(x.stride(-1) == 1 for x in (q, k, v))
    out = by_segment(q, k, v, bounds, longest)
    seed = torch.zeros(2, dtype=torch.uint64)
    return out, torch.zeros(q.shape[1], q.shape[0]), seed, seed, seed


def efficient_shape(q: Tensor, *_: Any) -> tuple[Any, ...]:
    nothing = torch.empty(0, device="meta")
    return torch.empty(q.shape, dtype=q.dtype, device="meta"), nothing, nothing, nothing, 0, 0


def efficient(
    q: Tensor, k: Tensor, v: Tensor, bias: None, bounds: Tensor, _: Tensor, longest: int, *__: Any
) -> tuple[Any, ...]:
    """Run memory-efficient attention on packed texts, which are one row of a batch."""
    assert len(q) == 1
    assert bounds.dtype == torch.int32
    nothing = torch.empty(0)
    return by_segment(q[0], k[0], v[0], bounds, longest)[None], nothing, nothing, nothing, 0, 0


def sdpa_shape(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
    """Tell the shape, or raise where only kernels are allowed that take half precision."""
    fused = (
        torch.backends.cuda.math_sdp_enabled() or torch.backends.cuda.mem_efficient_sdp_enabled()
    )
    if not fused and q.dtype not in HALVES:
        raise RuntimeError("No available kernel. Aborting execution.")
    return torch.empty(*q.shape[:-1], v.shape[-1], dtype=q.dtype, device="meta")


def sdpa(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    with sdpa_kernel([SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]):
        return F.scaled_dot_product_attention(q, k, v, *args, **kwargs)


def bag_shape(weight: Tensor, _: Tensor, offsets: Tensor, *__: Any) -> tuple[Tensor, ...]:
    """Tell the shape where the offsets include the end; nobody reads the other three results."""
    nothing = torch.empty(0, device="meta")
    means = torch.empty(len(offsets) - 1, weight.shape[1], dtype=weight.dtype, device="meta")
    return means, nothing, nothing, nothing


def bag(*args: Any) -> tuple[Tensor, ...]:
    means, *_ = aten._embedding_bag_forward_only.default(*args)
    return means, torch.empty(0), torch.empty(0), torch.empty(0)


# By operator: what tells the shapes of its results, and what computes them.
EMULATED: dict[Any, tuple[Any, Any]] = {
    aten._embedding_bag.default: (bag_shape, bag),
    aten._embedding_bag_forward_only.default: (bag_shape, bag),
    aten._efficient_attention_forward.default: (efficient_shape, efficient),
    aten._flash_attention_forward.default: (flash_shape, flash),
    aten.scaled_dot_product_attention.default: (sdpa_shape, sdpa),
}
