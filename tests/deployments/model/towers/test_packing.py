"""A batch on a CPU runs in parts of few sizes, which no row shows."""

import numpy as np
import pytest
import torch

from deployments.model import ClipModel
from deployments.model.runtime import runners


@pytest.mark.parametrize("limit", [1, 40, 100])
def test_rows_do_not_depend_on_the_parts(
    demo: ClipModel, limit: int, monkeypatch: pytest.MonkeyPatch
):
    """Texts of any lengths and order get the rows that each gets alone; every part is bounded."""
    random = np.random.default_rng(0)
    lengths = (30, 3, 90, 40, 41, 7, 2, 30)
    texts = [random.integers(4, 14000, length).astype(np.int32) for length in lengths]
    alone = np.concatenate([demo.embed_tokens([text]) for text in texts])
    sizes = []
    pack = runners.pack

    def counting(token_ids, *rest):
        sizes.append([len(ids) for ids in token_ids if ids.any()])  # the filling is zeros
        return pack(token_ids, *rest)

    monkeypatch.setattr(runners, "pack", counting)
    monkeypatch.setattr(runners, "CPU_TOKENS", limit)
    np.testing.assert_allclose(demo.embed_tokens(texts), alone, atol=1e-5)
    assert sorted(length for part in sizes for length in part) == sorted(lengths)
    assert all(sum(part) <= limit or len(part) == 1 for part in sizes)
    assert len(sizes) > 1


def test_batches_of_any_length_have_few_sizes(demo: ClipModel, monkeypatch: pytest.MonkeyPatch):
    """A thousand lengths make at most 16 sizes to each power of 2, and little is filled in."""
    sizes = []
    monkeypatch.setattr(demo._text._encoder, "forward", lambda packed: run(packed))

    def run(packed):  # the sizes are what counts, not the rows
        sizes.append(len(packed.token_ids))
        return torch.zeros(len(packed.order), demo.width)

    lengths = range(3, 1024, 3)
    for length in lengths:
        assert demo.embed_tokens([np.full(length, 5, dtype=np.int32)]).shape == (1, demo.width)
    assert len(sizes) == len(lengths)
    assert len(set(sizes)) <= 10 + 5 * 16 < len(lengths)
    assert all(
        0 <= size - length <= length / 16 for size, length in zip(sizes, lengths, strict=True)
    )
