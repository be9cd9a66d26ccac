"""Rows whose vectors an older output has: which they are, and that they are copied."""

import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from deployments.bulk.columns import DIGEST, vector_columns
from deployments.bulk.estimate import estimate
from deployments.bulk.identity import Identity
from deployments.bulk.job import Loader, prepare
from deployments.bulk.options import EmbedOptions
from deployments.bulk.output import OutputFolder
from deployments.bulk.takeover import OldRows, digest_column
from deployments.model import ClipModel

ROWS, WIDTH = 22, 8
JOB = Identity("m", "abc", WIDTH, "int8", "", "native", "{}", "{}", "", False, "{}", "123")


@pytest.fixture(scope="module")
def running_ray() -> Iterator[None]:
    """One Ray for this module."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def rows(folder: Path, inputs: Any) -> list[dict[str, Any]]:
    """Return texts, pictures that lie in a folder, and both; the picture of row 5 is missing."""
    for i in range(ROWS):
        if i != 5:
            (folder / f"{i}.png").write_bytes(inputs.picture(i))
    made = [{"id": f"k{i}", "text": None, "image": None} for i in range(ROWS)]
    for i in range(ROWS):
        made[i]["text"] = f"text {i}" if i % 3 else None
        made[i]["image"] = f"{i}.png" if i % 3 != 1 else None
    return made


@pytest.mark.usefixtures("running_ray")
def test_of_a_grown_input_only_what_is_new_is_computed(
    tmp_path: Path, make_options: Callable[..., EmbedOptions], reduced: ClipModel, inputs: Any
) -> None:
    """In another order and other blocks; the row that failed before is tried again."""
    made = rows(tmp_path, inputs)
    source = inputs.jsonl(tmp_path / "in.jsonl", made[:14])
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    prepare(str(source), old, make_options(), key="id", block_rows=4).run()
    random.Random(3).shuffle(made)
    inputs.jsonl(source, made)
    shutil.copy(tmp_path / "4.png", tmp_path / "5.png")
    job = prepare(str(source), new, make_options(), key="id", block_rows=5, replaced=old)
    expected = estimate(job)
    assert (expected.rows, expected.taken_rows, expected.errors) == (ROWS, 13, 0)
    summary = job.run()
    assert (summary.rows, summary.taken_rows, summary.total_errors) == (ROWS, 13, 0)
    computed = [row for row in made if int(row["id"][1:]) >= 14 or row["id"] == "k5"]
    texts, images = (sum(row[x] is not None for row in computed) for x in ("text", "image"))
    assert (expected.texts, expected.images, summary.images) == (texts, images, images)
    found = inputs.rows_of(tmp_path / "new")
    assert found["id"].to_pylist() == [row["id"] for row in made]
    texts = [row["text"] for row in made]
    images = [row["image"] and (tmp_path / row["image"]).read_bytes() for row in made]
    for name, values, embed in (
        ("text_embedding", texts, reduced.encode_text),
        ("image_embedding", images, reduced.encode_image),
    ):
        assert found[name].is_valid().to_pylist() == [value is not None for value in values]
        expected = embed([value for value in values if value is not None])
        np.testing.assert_allclose(found[name].drop_null().to_pylist(), expected, atol=1e-5)


def embedded(texts: list[str], images: list[object], folder: Path, seed: int = 0) -> pa.Table:
    """Return a finished table of texts and images; the first row has an error."""
    found = np.random.default_rng(seed).normal(size=(len(texts), WIDTH)).astype(np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    vectors, scales = vector_columns(dict(enumerate(found)), len(texts), WIDTH, "int8")
    errors = ["it failed", *[None] * (len(texts) - 1)]
    columns = {"text": texts, "image": images, "error": pa.array(errors, pa.string())}
    table = pa.table(columns | {"text_embedding": vectors, "text_scale": scales})
    return with_digests(table, folder)


def with_digests(table: pa.Table, folder: Path) -> pa.Table:
    plain = table.set_column(2, "error", pa.nulls(table.num_rows, pa.string()))
    options = EmbedOptions(text="text", image="image", folder=str(folder))
    return table.append_column(DIGEST, digest_column(plain, options))


TEXTS = [f"text {i}" for i in range(6)]
IMAGES = [None, None, "a.png", "b.png", "https://example.org/c.png", "d.png"]


@pytest.fixture
def old(tmp_path: Path, inputs: Any) -> OutputFolder:
    """An output of two blocks, of six rows."""
    for i, name in enumerate(("a.png", "b.png")):
        (tmp_path / name).write_bytes(inputs.picture(i))
    folder = OutputFolder(str(tmp_path / "old"))
    folder.begin(JOB, resume=False)
    table = embedded(TEXTS, IMAGES, tmp_path)
    folder.write(0, table.slice(0, 4), 1, JOB)
    folder.write(1, table.slice(4), 0, JOB)
    return folder


def test_a_row_is_found_by_what_it_embeds(tmp_path: Path, old: OutputFolder, inputs: Any) -> None:
    """A row with an error is not, nor a missing picture, nor what changed."""
    rows = OldRows.of(old.block_urls(), JOB)
    digests = with_digests(embedded(TEXTS, IMAGES, tmp_path).drop_columns([DIGEST]), tmp_path)
    assert rows.find(digests[DIGEST]).tolist() == [-1, 1, 2, 3, 4, -1]
    (tmp_path / "b.png").write_bytes(inputs.picture(9) + b" ")
    texts = [*TEXTS[:2], "another", *TEXTS[3:]]
    assert rows.find(embedded(texts, IMAGES, tmp_path)[DIGEST]).tolist() == [-1, 1, -1, -1, 4, -1]
    # The same names in another folder are other pictures.
    assert rows.find(embedded(TEXTS, IMAGES, tmp_path / "x")[DIGEST]).tolist() == [
        *(-1, 1, -1, -1, 4, -1)
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "def"},
        {"precision": "float32"},
        {"truncate": True},
        {"dtype": '{"text": "bfloat16"}'},
    ],
)
def test_other_vectors_are_not_taken(old: OutputFolder, change: dict[str, Any]) -> None:
    """Served under another name they are the same."""
    assert not len(OldRows.of(old.block_urls(), replace(JOB, **change)).places)
    assert len(OldRows.of(old.block_urls(), replace(JOB, model="other", input="9")).places) == 4


def test_copied_vectors_have_their_scales(tmp_path: Path, old: OutputFolder) -> None:
    """Those of rows that the old output lacks stay; a copied row can be copied again."""
    was = embedded(TEXTS, IMAGES, tmp_path)
    texts = [TEXTS[3], "new", TEXTS[4], TEXTS[1]]
    images = [IMAGES[3], None, IMAGES[4], None]
    now = embedded(texts, images, tmp_path, seed=1)
    rows = OldRows.of(old.block_urls(), JOB)
    filled = rows.fill(now, rows.find(now[DIGEST]))
    for name in ("text_embedding", "text_scale"):
        before, computed = was[name].to_pylist(), now[name].to_pylist()
        expected = [before[3], computed[1], before[4], before[1]]
        assert filled[name].to_pylist() == expected
    folder = OutputFolder(str(tmp_path / "new"))
    folder.begin(JOB, resume=False)
    folder.write(0, filled, 1, JOB)
    found = OldRows.of(folder.block_urls(), JOB).find(now[DIGEST])
    assert found.tolist() == [-1, 1, 2, 3]  # by `embedded` the first row has an error


def test_an_output_of_an_older_version_gives_nothing(tmp_path: Path, old: OutputFolder) -> None:
    """Its files have no digests."""
    path = Path(old.block_urls()[1])
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata(JOB.metadata()), path)
    rows = OldRows.of(old.block_urls(), JOB)
    found = rows.find(embedded(TEXTS, IMAGES, tmp_path)[DIGEST])
    assert found.tolist() == [-1, 1, 2, 3, -1, -1]


@pytest.mark.parametrize("needs_digests", [True, False])
def test_digests_are_made_where_somebody_looks_at_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_options: Callable[..., EmbedOptions],
    inputs: Any,
    needs_digests: bool,
) -> None:
    """A database keeps none."""
    source = inputs.jsonl(tmp_path / "in.jsonl", [{"text": "a"}, {"text": "b"}])
    job = prepare(str(source), str(tmp_path / "out"), make_options())
    window = SimpleNamespace(enter=SimpleNamespace(remote=lambda number: number))
    monkeypatch.setattr("ray.get", lambda found: found)
    loader = Loader(job.layout, job.options, window, needs_digests, None)
    (table,) = loader(pa.table({"block": [pickle.dumps(job.plan.blocks[0])]}))
    assert (DIGEST in table.column_names) is needs_digests
    assert table["text"].to_pylist() == ["a", "b"]
