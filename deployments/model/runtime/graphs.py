"""CUDA graphs of small batches: one launch instead of hundreds, over a few fixed shapes.

The forward of one query is a millisecond of work behind ten of launches. A small batch is filled
up to the nearest captured shape; the rows of the filling are dropped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GRAPH_TOKENS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
GRAPH_IMAGES = (1, 2, 4)
MANY_SHORT_TOKENS = 128
FEW_TEXTS = 8
FEW_LONG_TOKENS = 1024


@dataclass(frozen=True, order=True)
class Bucket:
    """The shape of a text batch: tokens in all, texts at most, tokens of the longest at most."""

    tokens: int
    sequences: int
    longest: int

    @property
    def num_bounds(self) -> int:
        """Length of cu_seqlens: 0, the texts, and what the filling may be cut into."""
        return 1 + self.sequences + -(-self.tokens // self.longest)

    def holds(self, tokens: int, sequences: int, longest: int) -> bool:
        """Tell whether a batch can be filled up to this shape."""
        return tokens <= self.tokens and sequences <= self.sequences and longest <= self.longest

    def fill(self, bounds: NDArray[np.intp]) -> NDArray[np.intp]:
        """Continue the bounds of a batch that fits with texts of the longest length at most.

        Attention kernels then read no token twice and leave none out, and every segment keeps to
        the longest length that they were told.
        """
        extra = np.arange(1, self.num_bounds - len(bounds) + 1) * self.longest
        filling: NDArray[np.intp] = np.minimum(bounds[-1] + extra, self.tokens)
        return np.concatenate((bounds, filling))


def text_buckets(max_tokens: int) -> tuple[Bucket, ...]:
    """Return the shapes to capture, smallest first: many short texts, or few of any length.

    Attention launches blocks for the number of texts times the longest, used or not; two kinds
    of shape keep that product small.
    """
    buckets = set()
    for tokens in (x for x in GRAPH_TOKENS if x <= max_tokens):
        buckets.add(Bucket(tokens, tokens // 4, min(tokens, MANY_SHORT_TOKENS)))
        if MANY_SHORT_TOKENS < tokens <= FEW_LONG_TOKENS:
            buckets.add(Bucket(tokens, FEW_TEXTS, tokens))
    return tuple(sorted(buckets))


def fitting(buckets: Sequence[Bucket], lengths: Sequence[int]) -> Bucket | None:
    """Return the smallest shape that holds texts of these lengths, or None."""
    batch = sum(lengths), len(lengths), max(lengths)
    return next((bucket for bucket in buckets if bucket.holds(*batch)), None)


class Graph:
    """A captured forward: replays on the memory of the inputs that it was captured with."""

    def __init__(self, forward: Callable[[Any], Tensor], inputs: Any, pool: Any) -> None:  # noqa: ANN401
        self.inputs = inputs
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # libraries set themselves up outside of the capture
                forward(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._output = forward(inputs)

    def replay(self) -> Tensor:
        """Queue the forward; the next replay of any graph of the pool overwrites the result."""
        self._graph.replay()
        return self._output
