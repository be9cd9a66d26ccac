"""Attention kernels behind one signature, and the one place that chooses among them.

Shapes: T tokens of all texts together, B pictures, S tokens of a picture, H heads, D head width.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from deployments.model.errors import OptionError

logger = logging.getLogger(__name__)

KERNELS = ("sdpa",)


@dataclass(frozen=True)
class Segments:
    """Where each text lies in a packed batch.

    Attributes:
        lengths: tokens of each text, on the host.
        cu_seqlens: int32 [N + 1] on the device, running sum of the lengths from 0.
        max_length: the longest text in tokens.
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    max_length: int


PackedAttention = Callable[[Tensor, Tensor, Tensor, Segments], Tensor]


def resolve(name: str, device: torch.device) -> str:
    """Turn `"auto"` into the kernel to use on a device, and log the choice.

    Raises:
        OptionError: the name is unknown.
    """
    if name not in ("auto", *KERNELS):
        raise OptionError(f"attention is {name!r}; choose 'auto' or one of {', '.join(KERNELS)}")
    chosen = "sdpa" if name == "auto" else name
    logger.info("attention on %s: %s", device, chosen)
    return chosen


def packed_sdpa(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, segments: Segments) -> Tensor:
    """Attend within each text of a packed batch; float [T, H, D] in and out.

    Neighbours of equal length run as one call, so packing sorted by length keeps calls few.
    """
    out_THD = torch.empty_like(q_THD)
    start = 0
    for length, run in groupby(segments.lengths):
        count = len(list(run))
        rows = slice(start, start + count * length)
        q, k, v = (
            x[rows].unflatten(0, (count, length)).transpose(1, 2) for x in (q_THD, k_THD, v_THD)
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        out_THD[rows] = attended.transpose(1, 2).flatten(0, 1)
        start = rows.stop
    return out_THD


def dense_sdpa(q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
    """Attend within each picture; float [B, S, H, D] in and out."""
    q, k, v = (x.transpose(1, 2) for x in (q_BSHD, k_BSHD, v_BSHD))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
