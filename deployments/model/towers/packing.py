"""Texts packed one after the other without padding, and how many go into one batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deployments.model.architecture import TextArchitecture
from deployments.model.errors import OptionError, TextTooLongError
from deployments.model.tokenizer import TokenIds
from deployments.model.towers.attention import Segments

# A CPU is 1.25 times as fast in parts of 2,048 or 4,096 tokens as in one of 16,384: what a layer
# gives the next stays in the cache, and is taken from the heap instead of being mapped anew.
CPU_TOKENS = 2048
# For each new number of tokens oneDNN makes kernels anew, and keeps them: 8 ms and 2.5 MB for the
# shipped checkpoint. So batches on a CPU are filled up to one of 16 sizes to each power of 2.
CPU_SIZES = 16


@dataclass(frozen=True, order=True)
class GraphShape:
    """The shape of a captured batch: its tokens, texts at most, tokens of the longest at most."""

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

    def fill(self, bounds: NDArray[np.int64]) -> NDArray[np.int64]:
        """Continue the bounds of a batch that fits with texts of the longest length at most.

        Attention kernels then read no token twice and leave none out, and every segment keeps to
        the longest length that they were told.
        """
        extra = np.arange(1, self.num_bounds - len(bounds) + 1) * self.longest
        filling: NDArray[np.int64] = np.minimum(bounds[-1] + extra, self.tokens)
        return np.concatenate((bounds, filling))


@dataclass(frozen=True)
class PackedTexts:
    """Texts one after the other, longest first.

    Attributes:
        buffer: int32 [N + 1 + 2T], the memory of cu_seqlens, token_ids and positions, in this
            order, so that one copy moves a batch.
        segments: where each text lies; its cu_seqlens is a view of the buffer.
        order: input index of each packed text.
    """

    buffer: Tensor
    segments: Segments
    order: NDArray[np.intp]

    @property
    def token_ids(self) -> Tensor:
        """int32 [T]."""
        return self._tokens_and_positions()[0]

    @property
    def positions(self) -> Tensor:
        """int32 [T], place of each token in its own text."""
        return self._tokens_and_positions()[1]

    def to(self, device: torch.device) -> "PackedTexts":
        """Return the batch on a device; the copy to a GPU is queued, not awaited."""
        if device.type == "cpu":
            return self
        return self.on(self.buffer.pin_memory().to(device, non_blocking=True))

    def on(self, buffer: Tensor) -> "PackedTexts":
        """Return the batch over another copy of its buffer."""
        cu_seqlens = buffer[: len(self.segments.cu_seqlens)]
        return PackedTexts(buffer, self.segments.on(cu_seqlens), self.order)

    def _tokens_and_positions(self) -> tuple[Tensor, ...]:
        return self.buffer[len(self.segments.cu_seqlens) :].chunk(2)


def check(texts: Sequence[TokenIds], arch: TextArchitecture) -> None:
    """Refuse on the host what would stop a GPU for good: an index out of range.

    Raises:
        TextTooLongError: a text has more tokens than the model has positions.
        OptionError: a token id that the model does not have.
    """
    lengths = [len(ids) for ids in texts]
    if max(lengths) > arch.max_tokens:
        index = next(i for i, length in enumerate(lengths) if length > arch.max_tokens)
        raise TextTooLongError(
            f"text {index} has {lengths[index]:,} tokens, the limit is {arch.max_tokens:,}"
        )
    token_ids = np.concatenate(texts)
    if token_ids.min() < 0 or token_ids.max() >= arch.vocab_size:
        ranges = [(i, int(ids.min()), int(ids.max())) for i, ids in enumerate(texts)]
        index, low, high = next(x for x in ranges if x[1] < 0 or x[2] >= arch.vocab_size)
        raise OptionError(
            f"text {index} has token ids from {low} to {high}, the model knows "
            f"0 to {arch.vocab_size - 1}; is the tokenizer another model's?"
        )


def pack(
    texts: Sequence[TokenIds], pad_token_id: int, shape: GraphShape | None = None
) -> PackedTexts:
    """Pack texts on the host for one forward; pads are left out, the others keep their positions.

    A pad inside a text (a literal `<pad>`) is neither attended to nor pooled in the published
    model, which derives its mask from the ids; leaving it out is the same.

    Args:
        texts: int32 token ids, specials included, at least one that is not a pad in each.
        pad_token_id: the id to leave out.
        shape: fill the batch up to this shape with further texts, made of pads.
    """
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    order = np.argsort(-lengths, kind="stable")
    lengths = lengths[order]
    bounds = np.concatenate(([0], np.cumsum(lengths)))
    token_ids = np.concatenate([texts[index] for index in order])
    positions = np.arange(len(token_ids)) - np.repeat(bounds[:-1], lengths)
    kept = token_ids != pad_token_id
    if not kept.all():
        lengths = np.add.reduceat(kept.astype(np.int64), bounds[:-1])
        bounds = np.concatenate(([0], np.cumsum(lengths)))
        token_ids, positions = token_ids[kept], positions[kept]
    total, longest = int(bounds[-1]), int(lengths.max())
    if shape:
        longest, bounds = shape.longest, shape.fill(bounds)
    padded, num_bounds = int(bounds[-1]), len(bounds)
    buffer = np.zeros(num_bounds + 2 * padded, np.int32)
    buffer[:num_bounds] = bounds
    buffer[num_bounds : num_bounds + total] = token_ids
    buffer[num_bounds + total : num_bounds + padded] = pad_token_id
    buffer[num_bounds + padded : num_bounds + padded + total] = positions
    memory = torch.from_numpy(buffer)
    # The memory of a filled batch is used again for others: only the device knows their lengths.
    context = longest if shape else int(np.square(lengths).sum()) // total
    known = () if shape else tuple(lengths.tolist())
    return PackedTexts(memory, Segments(memory[:num_bounds], longest, context, known), order)


def batches(costs: Sequence[int], max_cost: int, max_items: int = 2**31) -> Iterator[list[int]]:
    """Yield indices in order, in groups within both budgets; what is dearer than one goes alone."""
    batch: list[int] = []
    total = 0
    for index, cost in enumerate(costs):
        if batch and (len(batch) == max_items or total + cost > max_cost):
            yield batch
            batch, total = [], 0
        batch.append(index)
        total += cost
    if batch:
        yield batch


def text_batches(
    token_ids: Sequence[TokenIds], max_sequences: int, max_tokens: int
) -> Iterator[list[int]]:
    """Yield indices, longest texts first, within the sequence and token budgets."""
    order = sorted(range(len(token_ids)), key=lambda index: -len(token_ids[index]))
    for batch in batches([len(token_ids[index]) for index in order], max_tokens, max_sequences):
        yield [order[place] for place in batch]


def filling(tokens: int) -> int:
    """Return how many tokens a batch on a CPU lacks to one of the sizes that are used there."""
    step = max(1, (1 << tokens.bit_length()) // (2 * CPU_SIZES))
    return -tokens % step
