"""A large batch on a CPU runs in parts, which no row shows."""

import numpy as np
import pytest

from deployments.model import ClipModel, runners


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
        sizes.append([len(ids) for ids in token_ids])
        return pack(token_ids, *rest)

    monkeypatch.setattr(runners, "pack", counting)
    monkeypatch.setattr(runners, "CPU_TOKENS", limit)
    np.testing.assert_allclose(demo.embed_tokens(texts), alone, atol=1e-5)
    assert sorted(length for part in sizes for length in part) == sorted(lengths)
    assert all(sum(part) <= limit or len(part) == 1 for part in sizes)
    assert len(sizes) > 1
