"""CUDA graphs of small batches: one launch instead of hundreds, over a few fixed shapes.

The forward of one query is a millisecond of work behind ten of launches. A small batch is filled
up to the nearest captured shape; the rows of the filling are dropped.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deployments.model.towers.packing import GraphShape

GRAPH_TOKENS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
GRAPH_IMAGES = (1, 2, 3, 4, 6, 8)
MANY_SHORT_TOKENS = 128
FEW_TEXTS = 8
FEW_LONG_TOKENS = 1024


def text_shapes(max_tokens: int) -> tuple[GraphShape, ...]:
    """Return the shapes to capture, smallest first: many short texts, or few of any length.

    Attention launches blocks for the number of texts times the longest, used or not; two kinds
    of shape keep that product small.
    """
    shapes = set()
    for tokens in (x for x in GRAPH_TOKENS if x <= max_tokens):
        shapes.add(GraphShape(tokens, tokens // 4, min(tokens, MANY_SHORT_TOKENS)))
        if MANY_SHORT_TOKENS < tokens <= FEW_LONG_TOKENS:
            shapes.add(GraphShape(tokens, FEW_TEXTS, tokens))
    return tuple(sorted(shapes))


def fitting(shapes: Sequence[GraphShape], lengths: Sequence[int]) -> GraphShape | None:
    """Return the smallest shape that holds texts of these lengths, or None."""
    batch = sum(lengths), len(lengths), max(lengths)
    return next((shape for shape in shapes if shape.holds(*batch)), None)


class Graph:
    """A captured forward: replays on the memory of the inputs that it was captured with.

    Args:
        forward: what is captured.
        inputs: what it is given, at every replay.
        stream: where it is captured; one for all graphs, since cuBLAS keeps 32 MiB for each stream.
        pool: memory that all graphs share; one of them runs at a time.
    """

    def __init__(
        self,
        forward: Callable[[Any], Tensor],
        inputs: Any,  # noqa: ANN401
        stream: torch.cuda.Stream,
        pool: Any,  # noqa: ANN401
    ) -> None:
        self.inputs = inputs
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            forward(inputs)  # libraries set themselves up outside of the capture
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"
        ):
            self._output = forward(inputs)

    def replay(self) -> Tensor:
        """Queue the forward; the next replay of any graph of the pool overwrites the result."""
        self._graph.replay()
        return self._output
