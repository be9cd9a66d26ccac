import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from deployments.bulk.columns import ENCODED, PIXELS, TOKEN_IDS
from deployments.bulk.embedders import ImageEmbedder, TextEmbedder, with_vectors
from deployments.bulk.options import EmbedOptions
from deployments.bulk.prepare import RowPreparer, locate
from deployments.errors import ServiceError, TowerUnavailableError
from deployments.model import ClipModel
from deployments.model.errors import OptionError

TEXTS = [
    "",
    "a",
    "a",
    "\u732b\u2728 \u0645\u0631\u062d\u0628\u0627",
    "word " * 400,
    " spaces ",
    "zebra",
]


def vectors(table: pa.Table, name: str) -> np.ndarray:
    return np.array(table[name].to_pylist(), dtype=np.float32)


def test_texts_get_the_vectors_of_the_model(
    make_options: Callable[..., EmbedOptions], reduced: ClipModel
) -> None:
    """Sorting by length and packing change no vector and no place."""
    table = TextEmbedder(make_options(text="t", dimensions=40))({"t": TEXTS})
    expected = reduced.encode_text(TEXTS, dimensions=40)
    np.testing.assert_allclose(vectors(table, "text_embedding"), expected, atol=1e-5)
    assert np.abs(np.roll(expected, 1, axis=0) - expected).max() > 1e-2
    assert table["t"].to_pylist() == TEXTS


def test_queries_get_the_vectors_of_queries(
    make_options: Callable[..., EmbedOptions], reduced: ClipModel
) -> None:
    """The task's prefix is part of each text."""
    table = TextEmbedder(make_options(text="t", task="retrieval.query"))({"t": ["a", "b"]})
    found = vectors(table, "text_embedding")
    expected = reduced.encode_text(["a", "b"], task="retrieval.query")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - reduced.encode_text(["a", "b"])).max() > 1e-3


@pytest.mark.parametrize("on_gpu", [False, True])
def test_pictures_get_the_vectors_of_the_model(
    make_options: Callable[..., EmbedOptions], reduced: ClipModel, inputs: Any, on_gpu: bool
) -> None:
    """Decoded by the CPU stage, or, as where the tower has a GPU, by the tower."""
    options = make_options(image="i")
    if on_gpu:  # a share of a GPU is all that tells the stages who decodes
        vision = options.app.vision.model_copy(update={"num_gpus": 0.1})
        app = options.app.model_copy(update={"vision": vision})
        options = options.model_copy(update={"app": app})
    formats = ["PNG", "JPEG", "WEBP"] * 20
    images = [inputs.picture(i, name) for i, name in enumerate(formats)]
    rows = {"i": [*images, None, b"broken", images[0][: len(images[0]) // 2]]}
    prepared = RowPreparer(options)(rows)
    assert (ENCODED in prepared.column_names) is on_gpu
    table = ImageEmbedder(options)(prepared)
    found = table["image_embedding"]
    assert found.is_valid().to_pylist() == [True] * 60 + [False] * 3
    expected = reduced.encode_image(images)
    np.testing.assert_allclose(np.array(found.to_pylist()[:60]), expected, atol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3
    errors = table["error"].to_pylist()
    assert errors[:60] == [None] * 60
    assert errors[60] == "the row is empty: i null"
    assert "not a readable image" in errors[61]
    assert "broken" in errors[62]


def test_a_lost_device_fails_the_block_and_no_row(
    make_options: Callable[..., EmbedOptions],
) -> None:
    """Ray Data gives the block to another actor; an error of the item itself stays with its row."""
    options, table = make_options(text="t"), pa.table({"t": ["a", "b"]})
    found = {0: ServiceError("no finite vector"), 1: np.ones(8, np.float32)}
    done = with_vectors(table, found, options, 8, "text_embedding")
    assert done["error"].to_pylist() == ["text: no finite vector", None]
    with pytest.raises(TowerUnavailableError):
        with_vectors(table, found | {0: TowerUnavailableError("lost")}, options, 8, "x")


def test_each_kind_of_bad_row_has_its_reason(
    make_options: Callable[..., EmbedOptions], tmp_path: Path, inputs: Any
) -> None:
    """And the good modality of such a row is kept."""
    (tmp_path / "here.png").write_bytes(inputs.picture(1))
    options = make_options(text="t", image="i", folder=str(tmp_path))
    rows = {
        "t": ["good", "x " * 9000, None, "good", None, "\ud800"],
        "i": ["here.png", None, "missing.png", "?", None, None],
    }
    table = RowPreparer(options)(pa.table({"i": rows["i"]}).append_column("t", _objects(rows["t"])))
    errors = table["error"].to_pylist()
    assert errors[0] is None
    assert errors[1].startswith("text: the text has 9,002 tokens, the limit is 8,192")
    assert "missing.png" in errors[2]
    assert "No such file" in errors[2]
    assert errors[3].startswith("image: ")
    assert errors[4] == "the row is empty: t and i null"
    assert table[TOKEN_IDS].is_valid().to_pylist() == [True, False, False, True, False, False]
    assert table[PIXELS].is_valid().to_pylist() == [True] + [False] * 5


def _objects(values: list[str | None]) -> pa.Array:
    """Return a text column; Arrow holds bytes that are not UTF-8 only where nobody checks."""
    return pa.array([None if x == "\ud800" else x for x in values], pa.string())


def test_truncation_is_only_on_demand(make_options: Callable[..., EmbedOptions]) -> None:
    """With it a long text has as many tokens as the model takes."""
    table = RowPreparer(make_options(text="t", truncate=True))({"t": ["x " * 9000]})
    assert table["error"].to_pylist() == [None]
    assert len(table[TOKEN_IDS][0]) == 8192


@pytest.mark.parametrize(
    ("source", "folder", "expected"),
    [
        ("a b%.png", "/data", "file:///data/a%20b%25.png"),
        ("/x/a.png", "/data", "file:///x/a.png"),
        ("a.png", "s3://bucket/in", "s3://bucket/in/a.png"),
        ("https://example.com/a.png", "/data", "https://example.com/a.png"),
        ("s3://bucket/a.png", "/data", "s3://bucket/a.png"),
        ("/9j/4AAQSkZJRg==", "/data", "/9j/4AAQSkZJRg=="),
        (b"bytes", "/data", b"bytes"),
    ],
)
def test_paths_start_at_the_input(source: str, folder: str, expected: str) -> None:
    """A name of a picture is a path; URLs, base64 and bytes are what they are."""
    assert locate(source, folder) == expected


def test_dimensions_that_cannot_be_stored_are_refused(
    make_options: Callable[..., EmbedOptions],
) -> None:
    """Binary needs whole bytes; no precision has more components than the model."""
    for options in (
        make_options(text="t", dimensions=12, precision="binary"),
        make_options(text="t", dimensions=1000),
    ):
        with pytest.raises(OptionError, match="dimensions is"):
            options.width(options.architecture())


def test_the_cpu_stage_loads_no_torch() -> None:
    """Its workers stay small."""
    code = "import sys, deployments.bulk.prepare; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
