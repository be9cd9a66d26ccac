"""Attention kernels for CUDA, each behind the signature of its kind; libraries load on first use.

Packed kernels take q, k, v [T, H, D], int32 cu_seqlens [N + 1] on the device and the longest text;
dense kernels take q, k, v [B, S, H, D]. All return the shape of q.
"""

from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

TIMED_CALLS = 5

PackedKernel = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
DenseKernel = Callable[[Tensor, Tensor, Tensor], Tensor]


def varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int) -> Tensor:
    """Run torch's own variable-length attention, FlashAttention-2."""
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {"num_splits": 1} if _takes_num_splits() else {}
    return _first(varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest, **options))


@cache
def _takes_num_splits() -> bool:
    """Tell whether torch is 2.12 or newer, and might take cuDNN for texts of over 128 tokens.

    cuDNN would build a plan, 100 to 400 ms, for each new number of tokens and of texts, and keep
    it. One split rules it out.
    """
    from torch.nn.attention.varlen import varlen_attn

    return "num_splits" in signature(varlen_attn).parameters


def efficient(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int) -> Tensor:
    """Run torch's memory-efficient attention, for float32 and for GPUs older than Ampere."""
    # Beside the bounds: no bias, no dropout, no mask. Its public function takes no bounds.
    bounds = None, cu_seqlens, cu_seqlens, longest, longest, 0.0, 0
    batch = (x[None] for x in (q, k, v))
    out: Tensor = torch.ops.aten._efficient_attention_forward(*batch, *bounds)[0][0]
    return out


def flash2(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int) -> Tensor:
    """Run FlashAttention-2 of the `flash-attn` package."""
    from flash_attn import flash_attn_varlen_func

    out: Tensor = flash_attn_varlen_func(q, k, v, cu_seqlens, cu_seqlens, longest, longest)
    return out


def flash4(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int) -> Tensor:
    """Run FlashAttention-4 of the `flash-attn-4` package."""
    from flash_attn.cute import flash_attn_varlen_func

    return _first(
        flash_attn_varlen_func(
            q,
            k,
            v,
            cu_seqlens_q=cu_seqlens,
            cu_seqlens_k=cu_seqlens,
            max_seqlen_q=longest,
            max_seqlen_k=longest,
        )
    )


def dense_cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Run cuDNN's fused attention."""
    return _dense_sdpa(q, k, v, SDPBackend.CUDNN_ATTENTION)


def dense_flash2(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Run the FlashAttention-2 that torch carries."""
    return _dense_sdpa(q, k, v, SDPBackend.FLASH_ATTENTION)


def dense_flash4(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Run FlashAttention-4 of the `flash-attn-4` package."""
    from flash_attn.cute import flash_attn_func

    return _first(flash_attn_func(q, k, v))


def dense_xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Run xFormers' memory-efficient attention, the published model's own choice."""
    from xformers.ops import memory_efficient_attention

    out: Tensor = memory_efficient_attention(q, k, v)
    return out


PACKED: dict[str, PackedKernel] = {
    "varlen": varlen,
    "flash2": flash2,
    "flash4": flash4,
    "efficient": efficient,
}
DENSE: dict[str, DenseKernel] = {
    "cudnn": dense_cudnn,
    "flash2": dense_flash2,
    "flash4": dense_flash4,
    "xformers": dense_xformers,
}


Capability = tuple[int, int]
HOPPER, AMPERE = (9, 0), (8, 0)


def packed_order(capability: Capability, dtype: torch.dtype) -> tuple[str, ...]:
    """Return the packed kernels to try on GPUs of a generation: for short texts first, long last.

    FlashAttention-4's kernel for older GPUs is not tuned; no FlashAttention runs below Ampere, nor
    in float32.
    """
    if capability < AMPERE or dtype == torch.float32:
        return ("efficient",)
    if capability >= HOPPER:
        return ("varlen", "flash2", "flash4")
    return ("varlen", "flash2")


def dense_order(capability: Capability) -> tuple[str, ...]:
    """Return the dense kernels to try on GPUs of a generation, the best known first.

    On an H100, at 32 images of 1,297 tokens: cuDNN 331 and FlashAttention-4 339 TFLOP/s,
    FlashAttention-2 239, xFormers 200. On an H200 FlashAttention-4 was the faster by over 10%.
    """
    if capability >= HOPPER:
        return ("cudnn", "flash4", "flash2", "xformers")
    return ("flash2", "cudnn", "xformers") if capability >= AMPERE else ("xformers",)


def _dense_sdpa(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend) -> Tensor:
    with sdpa_kernel(backend):
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        )
    return out.transpose(1, 2)


def _first(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the output itself: some releases return the log-sum-exp beside it."""
    return out if isinstance(out, Tensor) else out[0]


def milliseconds(run: Callable[..., object], *arguments: object) -> float:
    """Return the device time of one call on the current stream, after a warm-up."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    run(*arguments)
    start.record()
    for _ in range(TIMED_CALLS):
        run(*arguments)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / TIMED_CALLS
