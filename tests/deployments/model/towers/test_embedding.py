"""The word embedding that stays in the checkpoint's file."""

import shutil

import pytest
import torch

from deployments.model import ClipModel
from deployments.model.towers.embedding import WordEmbedding
from deployments.model.weights.checkpoint import WORDS, Checkpoint
from deployments.model.weights.source import FILES


@pytest.fixture
def words(reduced_folder):
    return Checkpoint(reduced_folder).words()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_those_of_the_merged_table(reduced_folder, words, dtype):
    """Within a rounding, in the precision asked for; without the adapter they differ."""
    merged = dict(Checkpoint(reduced_folder).text_weights())[f"{WORDS}.weight"]
    ids = torch.arange(len(merged)).flip(0)
    rows = WordEmbedding(words, dtype)(ids)
    assert rows.dtype == dtype
    torch.testing.assert_close(rows, merged[ids].to(dtype), atol=1e-7, rtol=2**-7)
    torch.testing.assert_close(rows.float(), merged[ids], atol=1e-6, rtol=torch.finfo(dtype).eps)
    assert (words.table[ids].float() - merged[ids]).abs().max() > 1e-3


def test_a_row_is_the_same_alone_and_beside_others(words):
    """Bit for bit: a text's vector does not depend on how its tokens are looked up."""
    embedding, ids = WordEmbedding(words, torch.float32), torch.arange(40)
    together = embedding(ids)
    assert all(torch.equal(embedding(ids[i : i + 1])[0], together[i]) for i in range(len(ids)))


def test_the_table_is_read_from_the_file_and_survives_its_replacement(reduced_folder, tmp_path):
    """It is mapped as it is stored; a file renamed over the old one changes no row."""
    for name in FILES:
        shutil.copy(reduced_folder / name, tmp_path / name)
    weights = tmp_path / "model.safetensors"
    model = ClipModel.load(tmp_path, towers=("text",))
    before = model.encode_text(["a red apple"])
    with open("/proc/self/maps") as file:
        assert str(weights) in file.read()
    (tmp_path / "other").write_bytes(bytes(weights.stat().st_size))
    (tmp_path / "other").replace(weights)
    assert (model.encode_text(["a red apple"]) == before).all()
    assert (before == ClipModel.load(reduced_folder).encode_text(["a red apple"])).all()
