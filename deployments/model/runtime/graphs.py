"""CUDA graphs of batches of texts and of few images: one launch in place of hundreds.

The forward of one query is a millisecond of work behind ten of launches. That of 16,384 tokens is
25 ms of work, and launching it took 20 ms of the interpreter's time beside an event loop, so that
an H100 did 517k tokens/s over HTTP in place of 585k. A batch is filled up to the nearest captured
shape; the rows of the filling are dropped.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deployments.model.towers.packing import GraphShape

GRAPH_TOKENS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
LARGE_STEPS = 8  # sizes to each power of two above these: 3% of a batch is filling, on average
GRAPH_IMAGES = (1, 2, 3, 4, 6, 8)
MANY_TEXTS, MANY_SHORT_TOKENS = 512, 128
SOME_TEXTS, SOME_LONG_TOKENS = 128, 512
FEW_TEXTS, FEW_LONG_TOKENS = 8, 1024


def text_shapes(max_tokens: int) -> tuple[GraphShape, ...]:
    """Return the shapes to capture, smallest first: many short texts, or fewer of more tokens.

    Attention launches blocks for the number of texts times the longest, used or not; two kinds
    of shape keep that product small. Batches of longer texts have work enough behind a launch.
    """
    shapes = set()
    for tokens in graph_tokens(max_tokens):
        many = min(tokens // 4, MANY_TEXTS)
        shapes.add(GraphShape(tokens, many, min(tokens, MANY_SHORT_TOKENS)))
        if tokens > FEW_LONG_TOKENS:
            shapes.add(GraphShape(tokens, SOME_TEXTS, SOME_LONG_TOKENS))
        elif tokens > MANY_SHORT_TOKENS:
            shapes.add(GraphShape(tokens, FEW_TEXTS, tokens))
    return tuple(sorted(shapes))


def graph_tokens(max_tokens: int) -> list[int]:
    """Return the tokens of the shapes to capture, smallest first."""
    sizes = list(GRAPH_TOKENS)
    while sizes[-1] < max_tokens:
        power = 1 << (sizes[-1].bit_length() - 1)
        sizes.append(sizes[-1] + power // LARGE_STEPS)
    return [size for size in sizes if size <= max_tokens]


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
