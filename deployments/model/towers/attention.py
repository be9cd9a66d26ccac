"""Attention behind one signature per tower, and the one place that chooses the kernel.

Shapes: T tokens of all texts together, N texts, B images, S tokens of an image, H heads, D head
width.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from deployments.model.errors import OptionError
from deployments.model.towers import kernels

logger = logging.getLogger(__name__)

NAMES = tuple(sorted({"sdpa", *kernels.PACKED, *kernels.DENSE}))

# Batches whose tokens see more than this on average run on the kernel for long texts. On an H200
# FlashAttention-4 takes twice the time of FlashAttention-2 for texts of 256 tokens, 0.93 of it for
# 512, 0.74 for 1,024 and 0.57 for 8,192 (benchmarks/README.md).
LONG_CONTEXT = 512
# Lengths of the texts that a kernel is tried on.
TRIED_LENGTHS = ((700, 129, 48, 0), (1500, *(20,) * 300))
# Share of its time by which a kernel has to beat the one that comes first by order.
CLEARLY_FASTER = 0.1


@dataclass(frozen=True)
class Segments:
    """Where each text lies in a packed batch.

    Attributes:
        cu_seqlens: int32 [N + 1] on the device, running sum of the lengths from 0.
        max_length: the longest text in tokens.
        mean_context: tokens of its own text that a token sees, averaged over all tokens, or an
            upper bound of that.
        lengths: tokens of each text on the host; empty where only the device knows them.
    """

    cu_seqlens: Tensor
    max_length: int
    mean_context: int
    lengths: tuple[int, ...] = ()

    def on(self, cu_seqlens: Tensor) -> "Segments":
        """Return the same texts with their bounds elsewhere."""
        return Segments(cu_seqlens, self.max_length, self.mean_context, self.lengths)

    def without_lengths(self) -> "Segments":
        """Return what compiled code may see: lengths would be a new compilation for each batch."""
        return Segments(self.cu_seqlens, self.max_length, self.mean_context)


@dataclass(frozen=True)
class PackedKernels:
    """The kernels of the text tower: by name, for batches of short and of long texts."""

    short: str
    long: str

    def __str__(self) -> str:
        return self.short if self.short == self.long else f"{self.short}+{self.long}"


PackedAttention = Callable[[Tensor, Tensor, Tensor, Segments], Tensor]
DenseAttention = Callable[[Tensor, Tensor, Tensor], Tensor]


def packed_sdpa(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, segments: Segments) -> Tensor:
    """Attend within each text of a packed batch; float [T, H, D] in and out.

    Neighbours of equal length run as one call, so packing sorted by length keeps calls few.
    """
    lengths = segments.lengths or tuple(segments.cu_seqlens.diff().tolist())
    if len(lengths) == 1:  # a query alone: 4% of its time
        return dense_sdpa(q_THD[None], k_THD[None], v_THD[None])[0]
    parts, start = [], 0
    for length, run in groupby(x for x in lengths if x):
        count = len(list(run))
        rows = slice(start, start + count * length)
        q, k, v = (x[rows].unflatten(0, (count, length)) for x in (q_THD, k_THD, v_THD))
        parts.append(dense_sdpa(q, k, v).flatten(0, 1))
        start = rows.stop
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def dense_sdpa(q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
    """Attend within each image; float [B, S, H, D] in and out."""
    q, k, v = (x.transpose(1, 2) for x in (q_BSHD, k_BSHD, v_BSHD))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


# The two operators hide the kernels from torch.compile: one compilation serves every kernel and
# every choice between short and long texts.
@torch.library.custom_op("jina_clip_serve::packed_attention", mutates_args=())
def _packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    longest: int,
    context: int,
    short: str,
    long: str,
) -> Tensor:
    name = long if context > LONG_CONTEXT else short
    if name == "sdpa":
        return packed_sdpa(q, k, v, Segments(cu_seqlens, longest, context)).contiguous()
    return kernels.PACKED[name](q, k, v, cu_seqlens, longest).contiguous()


@_packed.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    longest: int,
    context: int,
    short: str,
    long: str,
) -> Tensor:
    return q.new_empty(q.shape)


@torch.library.custom_op("jina_clip_serve::dense_attention", mutates_args=())
def _dense(q: Tensor, k: Tensor, v: Tensor, name: str) -> Tensor:
    kernel = dense_sdpa if name == "sdpa" else kernels.DENSE[name]
    return kernel(q, k, v).contiguous()


@_dense.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, name: str) -> Tensor:
    return q.new_empty(q.shape)


def packed_attention(choice: PackedKernels) -> PackedAttention:
    """Return the chosen kernels as one function that torch.compile does not look into."""

    def attend(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
        bounds = segments.cu_seqlens, segments.max_length, segments.mean_context
        out: Tensor = _packed(q, k, v, *bounds, choice.short, choice.long)
        return out

    return attend


def dense_attention(name: str) -> DenseAttention:
    """Return the kernel as a function that torch.compile does not look into."""
    return lambda q, k, v: _dense(q, k, v, name)


def resolve_packed(name: str, device: torch.device, dtype: torch.dtype) -> PackedKernels:
    """Choose the text tower's kernels; `"auto"` takes the best that runs here, and logs it.

    A name that only the other tower knows counts as `"auto"`.

    Raises:
        OptionError: the name is unknown, or its kernel does not run here.
    """
    _check_name(name)
    chosen = PackedKernels("sdpa", "sdpa")
    if name in kernels.PACKED:
        _require(name, _packed_fault(name, device, dtype), device, dtype)
        chosen = PackedKernels(name, name)
    elif name != "sdpa" and device.type == "cuda":
        tried = kernels.packed_order(torch.cuda.get_device_capability(device), dtype)
        usable = [x for x in tried if not _packed_fault(x, device, dtype)]
        if usable:
            chosen = PackedKernels(usable[0], usable[-1])
    logger.info("text attention on %s: %s", device, chosen)
    return chosen


def resolve_dense(
    name: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int, int]
) -> str:
    """Choose the vision tower's kernel; `"auto"` takes the first that runs here of a fixed order.

    The order is that of the device's generation, so that equal replicas choose alike. Only where
    another kernel is clearly faster at [B, S, H, D] is that one taken. A name that only the other
    tower knows counts as `"auto"`.

    Raises:
        OptionError: the name is unknown, or its kernel does not run here.
    """
    _check_name(name)
    chosen = "sdpa"
    if name in kernels.DENSE:
        _require(name, _dense_fault(name, device, dtype), device, dtype)
        chosen = name
    elif name != "sdpa" and device.type == "cuda":
        tried = kernels.dense_order(torch.cuda.get_device_capability(device))
        usable = [x for x in tried if not _dense_fault(x, device, dtype)]
        if usable:
            q = torch.randn(shape, device=device, dtype=dtype)
            times_ms = {x: kernels.milliseconds(lambda x=x: _dense(q, q, q, x)) for x in usable}
            chosen = preferred(times_ms)
            logger.info("vision attention, milliseconds at %s: %s", shape, times_ms)
    logger.info("vision attention on %s: %s", device, chosen)
    return chosen


def preferred(times_ms: dict[str, float]) -> str:
    """Return the first name, unless another is faster by more than `CLEARLY_FASTER`."""
    first, fastest = next(iter(times_ms)), min(times_ms, key=times_ms.__getitem__)
    return fastest if times_ms[fastest] < times_ms[first] * (1 - CLEARLY_FASTER) else first


def _check_name(name: str) -> None:
    if name not in ("auto", *NAMES):
        raise OptionError(f"attention is {name!r}; choose 'auto' or one of {', '.join(NAMES)}")


def _require(name: str, fault: str, device: torch.device, dtype: torch.dtype) -> None:
    if fault:
        raise OptionError(f"attention {name!r} does not run on {device} in {dtype}: {fault}")


def _packed_fault(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Return why a kernel cannot be used here, or nothing.

    It is tried as the tower uses it: on slices of one tensor of q, k and v, with an empty text as
    behind a filled batch, and with few and with many texts, for which libraries have kernels apart.
    """
    attend = packed_attention(PackedKernels(name, name))
    for lengths in TRIED_LENGTHS:
        bounds = torch.tensor([0, *lengths], device=device).cumsum(0).int()
        segments = Segments(bounds, max(lengths), max(lengths), lengths)
        fault = _fault((sum(lengths),), device, dtype, packed_sdpa, attend, segments)
        if fault:
            return fault
    return ""


def _dense_fault(name: str, device: torch.device, dtype: torch.dtype) -> str:
    return _fault((1, 80), device, dtype, dense_sdpa, dense_attention(name))


def _fault(
    tokens: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    exact: Callable[..., Tensor],
    kernel: Callable[..., Tensor],
    *segments: Segments,
) -> str:
    qkv = torch.randn((*tokens, 3, 2, 64), device=device, dtype=dtype)
    q, k, v = qkv.unbind(len(tokens))
    try:
        gap = (kernel(q, k, v, *segments) - exact(q, k, v, *segments)).abs().max().item()
    except Exception as error:  # noqa: BLE001 - libraries and drivers fail in their own ways
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return "" if gap < 0.05 else f"it differs from SDPA by {gap:.3g}"
