import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from deployments.bulk import TooManyErrorsError, embed, estimate, prepare
from deployments.bulk.options import EmbedOptions
from deployments.model import ClipModel
from deployments.model.errors import OptionError
from serve_app.cli import main

LONG = "x " * 9000
TEXTS = ["dup", "dup", "", None, "\u732b\u2728", "caf\u00e9 \U0001f600", LONG, "last"] * 2
IDS = ["1", "1", "\u00fc", "", "a b", None, "7", "8"] * 2
PICTURES = ["0.png", None, "1.png", None, "broken.png", "missing.png", "2.png", None] * 2
SMALL = ("text.num_cpus=0.1", "vision.num_cpus=0.1")
Options = Callable[..., EmbedOptions]


@pytest.fixture(scope="module", autouse=True)
def running_ray(bucket: Any) -> Iterator[None]:
    """One Ray for this module; its workers know the S3 server."""
    import ray

    # The Ray of the service's tests has no processors left for a job: it would wait for ever.
    assert not ray.is_initialized(), "run these tests before those of serve_app, as pytest does"
    ray.init(
        num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, inputs: Any) -> Path:
    """Rows with a text, a picture, both or neither, twice over; some of them bad."""
    folder = tmp_path_factory.mktemp("mixed")
    for i in range(3):
        (folder / f"{i}.png").write_bytes(inputs.picture(i))
    (folder / "broken.png").write_bytes(inputs.picture(1)[:60])
    names = ("id", "text", "image")
    rows = [dict(zip(names, row, strict=True)) for row in zip(IDS, TEXTS, PICTURES, strict=True)]
    return inputs.jsonl(folder / "in.jsonl", rows)


def command(*arguments: object, source: Path) -> Any:
    """Run the command line."""
    settings = [f"model.source={source}", *SMALL]
    return CliRunner().invoke(main, ["bulk", *map(str, arguments), *settings])


@pytest.fixture(scope="module")
def done(mixed: Path, reduced_folder: Path) -> Any:
    """The finished job of the mixed rows; its files lie in `out` beside them."""
    columns = ("--id", "id", "--keep", "text", "--block-rows", 3, "--json", "--stats")
    return command(mixed, mixed.parent / "out", *columns, source=reduced_folder)


def test_a_mixed_job_loses_no_row(mixed: Path, done: Any, reduced: ClipModel, inputs: Any) -> None:
    """Ids and order are the input's, vectors the model's, null where there is no input."""
    table = inputs.rows_of(mixed.parent / "out")
    assert table["id"].to_pylist() == IDS
    assert table["text"].to_pylist() == TEXTS
    assert table["row"].to_pylist() == list(range(16))
    texts = {i: text for i, text in enumerate(TEXTS) if text not in (None, LONG)}
    expected = reduced.encode_text(list(texts.values()))
    compare(table["text_embedding"], list(texts), expected)
    images = [(mixed.parent / f"{i}.png").read_bytes() for i in range(3)]
    expected = np.tile(reduced.encode_image(images), (2, 1))
    compare(table["image_embedding"], [0, 2, 6, 8, 10, 14], expected)


def compare(column: pa.ChunkedArray, places: list[int], expected: np.ndarray) -> None:
    assert np.flatnonzero(column.is_valid().to_numpy()).tolist() == places
    found = np.array([column[place].as_py() for place in places])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_every_bad_row_has_a_reason(mixed: Path, done: Any, inputs: Any) -> None:
    """The exit code says that there are some, and the summary counts them."""
    assert done.exit_code == 3, done.output
    summary = json.loads(done.stdout)
    assert (summary["rows"], summary["total_errors"], summary["images"]) == (16, 8, 6)
    assert min(summary["stage_s"][name] for name in ("prepare", "text", "vision")) > 0
    assert "MapBatches(TextEmbedder)" in done.stderr  # Ray Data's own account, by --stats
    errors = inputs.rows_of(mixed.parent / "out")["error"].to_pylist()
    assert [i for i, error in enumerate(errors[:8]) if error] == [3, 4, 5, 6]
    assert errors[3] == "the row is empty: text and image null"
    assert "broken" in errors[4]
    assert "missing.png" in errors[5]
    assert "the text has" in errors[6]


@pytest.mark.usefixtures("done")
def test_other_programs_read_the_output(mixed: Path, inputs: Any) -> None:
    """Both pandas and DuckDB get lists of numbers; nothing of Ray is in the files."""
    import duckdb
    import pandas as pd

    output = mixed.parent / "out"
    frame = pd.read_parquet(output)
    query = f"select text_embedding from '{output}/*.parquet' order by row"
    rows = [row for (row,) in duckdb.sql(query).fetchall()]
    assert [row is None for row in rows] == [text in (None, LONG) for text in TEXTS]
    for row, other in zip(rows, frame["text_embedding"], strict=True):
        assert (row is None and other is None) or list(row) == list(other)
    assert np.linalg.norm(rows[0]) == pytest.approx(1, abs=1e-6)
    schema = inputs.rows_of(output).schema
    assert pa.types.is_fixed_size_list(schema.field("text_embedding").type)
    assert not any(b"ray" in key for key in schema.metadata)


@pytest.mark.usefixtures("done")
def test_a_finished_job_is_not_computed_again(mixed: Path, reduced_folder: Path) -> None:
    """Nor written over, nor continued as another; too many errors are too many at once."""
    first = (mixed, mixed.parent / "out", "--id", "id", "--keep", "text", "--block-rows", 3)
    again = command(*first, "--resume", "--json", source=reduced_folder)
    summary = json.loads(again.stdout)
    assert again.exit_code == 3
    assert (summary["rows"], summary["resumed_blocks"], summary["total_errors"]) == (0, 6, 8)
    refused = command(*first, source=reduced_folder)
    assert refused.exit_code == 1
    assert "--resume" in refused.stderr
    other = command(*first, "--resume", "--precision", "int8", source=reduced_folder)
    assert other.exit_code == 1
    assert "precision was float32, now int8" in other.stderr.replace("\n", " ")
    limited = command(*first, "--resume", "--max-errors", 7, source=reduced_folder)
    assert limited.exit_code == 4


@pytest.mark.usefixtures("done")
def test_a_new_model_is_embedded_beside_the_old(
    mixed: Path, tmp_path: Path, reduced_folder: Path, inputs: Any
) -> None:
    """The report says how the rows moved, in blocks of another size too; the old output stays."""
    old, second = mixed.parent / "out", tmp_path / "second"
    shutil.copytree(reduced_folder, second)
    tensors = load_file(second / "model.safetensors")
    changed = {name: np.asarray(x * 1.05 + 0.002, x.dtype) for name, x in tensors.items()}
    save_file(changed, second / "model.safetensors")
    arguments = (mixed, tmp_path / "new", "--block-rows", 5, "--json", "--reembed", old)
    before = sorted(path.stat().st_mtime_ns for path in old.iterdir())
    refused = command(mixed, old, *arguments[2:], source=second)
    assert refused.exit_code == 1
    assert "name another as OUTPUT" in refused.stderr.replace("\n", " ")
    job = command(*arguments, source=second)
    assert job.exit_code == 3, job.output  # as the old one, for its bad rows
    found = json.loads(job.stdout)["reembed"]
    assert (found["old_rows"], found["new_rows"], found["missing_rows"]) == (16, 16, 0)
    tables = [inputs.rows_of(x)["text_embedding"].drop_null() for x in (old, tmp_path / "new")]
    rows = [np.array(table.to_pylist()) for table in tables]
    change = found["changes"]["text_embedding"]
    assert (change["rows"], change["lost"]) == (len(rows[0]), 0)
    assert change["cosine"] == pytest.approx((rows[0] * rows[1]).sum(axis=1).mean(), abs=1e-5)
    stated = json.loads((tmp_path / "new" / "_manifest.json").read_text())
    assert stated["vectors"]["fingerprint"] != stated["replaced_vectors"]["fingerprint"]
    assert sorted(path.stat().st_mtime_ns for path in old.iterdir()) == before


def test_a_bad_command_line_starts_nothing(mixed: Path, reduced_folder: Path) -> None:
    """The message names the value."""
    bad = command(mixed, mixed.parent / "no", "--text-replicas", "x", source=reduced_folder)
    assert bad.exit_code == 2
    assert "replicas are 'x'" in bad.stderr
    assert not (mixed.parent / "no").exists()


def test_s3_in_and_out(
    bucket: Any, tmp_path: Path, reduced_folder: Path, reduced: ClipModel, inputs: Any
) -> None:
    """A table and its pictures come from a bucket, and the vectors go there."""
    columns = {"text": ["one", "two", "three"], "image": ["a.png", None, None]}
    table = inputs.parquet(tmp_path / "in.parquet", columns)
    bucket.upload_file(str(table), "data", "in/in.parquet")
    bucket.put_object(Bucket="data", Key="in/a.png", Body=inputs.picture(4))
    arguments = ("s3://data/in/*.parquet", "s3://data/out", "--block-rows", 2)
    job = command(*arguments, source=reduced_folder)
    assert job.exit_code == 0, job.output
    names = [x["Key"] for x in bucket.list_objects_v2(Bucket="data", Prefix="out")["Contents"]]
    assert names == ["out/_job.json", "out/block-00000000.parquet", "out/block-00000001.parquet"]
    again = command(*arguments, "--resume", "--json", source=reduced_folder)
    assert json.loads(again.stdout)["resumed_blocks"] == 2
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in names[1:]:
        bucket.download_file("data", name, str(folder / Path(name).name))
    found = inputs.rows_of(folder)
    compare(found["text_embedding"], [0, 1, 2], reduced.encode_text(columns["text"]))
    compare(found["image_embedding"], [0], reduced.encode_image([inputs.picture(4)]))


def test_too_many_errors_stop_a_job(tmp_path: Path, make_options: Options, inputs: Any) -> None:
    """The job ends early; what was finished stays."""
    rows = [{"text": None if i % 2 else "good"} for i in range(40)]
    source = inputs.jsonl(tmp_path / "in.jsonl", rows)
    arguments = str(source), str(tmp_path / "out"), make_options(), (), 2
    with pytest.raises(TooManyErrorsError, match="4 rows have errors, the limit is 3"):
        prepare(*arguments, max_errors=3).run()
    table = inputs.rows_of(tmp_path / "out")
    assert 8 <= table.num_rows < 40
    assert table["error"].is_valid().to_pylist() == [False, True] * (table.num_rows // 2)


def test_an_estimate_counts_and_times_a_sample(
    tmp_path: Path, mixed: Path, make_options: Options
) -> None:
    """Rows are exact; tokens and pictures follow from the sample, here the whole."""
    job = prepare(str(mixed), str(tmp_path / "out"), make_options(), block_rows=8)
    found = estimate(job)
    assert (found.rows, found.blocks, found.texts, found.images, found.errors) == (16, 2, 12, 6, 8)
    assert found.tokens > 12 * 2
    assert found.seconds == pytest.approx(max(found.stage_s.values()), abs=1e-3)
    assert set(found.stage_s) == {"prepare", "text", "vision"}
    assert not (tmp_path / "out").exists()


def test_towers_on_gpus_embed_a_block_at_a_time(
    tmp_path: Path, reduced_folder: Path, reduced: ClipModel, inputs: Any
) -> None:
    """Ray Data refuses a stage on GPUs whose batches have no size; the GPU is make-believe."""
    picture, texts = tmp_path / "0.png", [f"text {number}" for number in range(6)]
    picture.write_bytes(inputs.picture(0))
    (tmp_path / "in").mkdir()
    for number in range(0, 6, 2):
        rows = {"text": texts[number : number + 2], "image": [str(picture), None]}
        inputs.parquet(tmp_path / "in" / f"{number}.parquet", rows)
    gpus = "model.device=cpu", "text.num_gpus=0.5", "vision.num_gpus=0.5"
    settings = [f"model.source={reduced_folder}", *gpus]
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--keep", "text", *settings]
    result = CliRunner().invoke(main, ["bulk", *arguments])
    assert result.exit_code == 0, result.output
    table = inputs.rows_of(tmp_path / "out")
    assert table["text"].to_pylist() == texts
    compare(table["text_embedding"], list(range(6)), reduced.encode_text(texts))
    expected = reduced.encode_image([picture.read_bytes()] * 3)
    compare(table["image_embedding"], [0, 2, 4], expected)


def test_a_dataset_of_ones_own_is_embedded(make_options: Options, reduced: ClipModel) -> None:
    """`embed` adds columns to any dataset and leaves its rows alone."""
    import ray

    rows = [{"title": text, "n": i} for i, text in enumerate(["b", "a", "", "b"])]
    dataset = embed(ray.data.from_items(rows), make_options(text="title", precision="int8"))
    found = sorted(dataset.take_all(), key=lambda row: row["n"])
    assert set(found[0]) == {"title", "n", "text_embedding", "text_scale", "error"}
    exact = reduced.encode_text(["b", "a", "", "b"])
    stored = np.array([row["text_embedding"] for row in found], dtype=np.float32)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    assert (stored * exact).sum(axis=1).min() > 0.999
    with pytest.raises(OptionError, match="neither a text nor an image column"):
        embed(ray.data.from_items(rows), make_options())


def test_what_embed_returns_goes_to_any_writer_of_ray_data(
    tmp_path: Path, make_options: Options, reduced: ClipModel
) -> None:
    """Here a Delta table: its own reader gives the rows back."""
    import deltalake
    import ray

    rows = [{"title": text, "n": i} for i, text in enumerate(["b", "a", "c"])]
    embed(ray.data.from_items(rows), make_options(text="title")).write_delta(str(tmp_path / "t"))
    table = deltalake.DeltaTable(tmp_path / "t").to_pyarrow_table().sort_by("n")
    assert table["title"].to_pylist() == ["b", "a", "c"]
    expected = reduced.encode_text(["b", "a", "c"])
    np.testing.assert_allclose(table["text_embedding"].to_pylist(), expected, atol=1e-5)
