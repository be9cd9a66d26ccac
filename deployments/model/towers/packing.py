"""How texts are shared out to batches, and the sizes of batches on a CPU."""

from collections.abc import Iterator, Sequence

from deployments.model.tokenizer import TokenIds

# A CPU is 1.25 times as fast in parts of 2,048 or 4,096 tokens as in one of 16,384: what a layer
# gives the next stays near, and is taken from the heap instead of being mapped anew.
CPU_TOKENS = 2048
# For each new number of tokens oneDNN makes kernels anew, and keeps them: 8 ms and 2.5 MB for the
# shipped checkpoint. So batches on a CPU are filled up to one of 16 sizes to each power of 2.
CPU_SIZES = 16


def text_batches(
    token_ids: Sequence[TokenIds], max_sequences: int, max_tokens: int
) -> Iterator[list[int]]:
    """Yield indices, longest texts first, within the sequence and token budgets."""
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(token_ids)), key=lambda i: -len(token_ids[i])):
        length = len(token_ids[index])
        if batch and (len(batch) == max_sequences or tokens + length > max_tokens):
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += length
    if batch:
        yield batch


def filling(tokens: int) -> int:
    """Return how many tokens a batch on a CPU lacks to one of the sizes that are used there."""
    step = max(1, (1 << tokens.bit_length()) // (2 * CPU_SIZES))
    return -tokens % step
