"""Which files are an input."""

import json
from urllib.parse import unquote

import deltalake
import pyarrow as pa
import pytest

from deployments.bulk.reading.blocks import cut_input
from deployments.bulk.reading.finding import folder_of
from deployments.model.errors import OptionError
from tests.deployments.bulk.reading.reading import read_all, rows_of


def test_photos_whose_names_begin_with_an_underscore_are_photos(tmp_path, inputs):
    """Cameras write `_DSC0001.JPG`; programs that write tables mean something by it."""
    for name in ("_DSC1.JPG", "_MG_2.jpg", "LICENSE_PLATE.jpg", "_temporary/a.jpg", "._DSC1.JPG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(inputs.picture(1))
    (tmp_path / "LICENSE").write_text("x")
    names = [path.rpartition("/")[2] for path in read_all(tmp_path)["path"].to_pylist()]
    assert names == ["LICENSE_PLATE.jpg", "_DSC1.JPG", "_MG_2.jpg"]


def test_a_partition_whose_name_begins_with_an_underscore_is_one(tmp_path, inputs):
    """As Spark has it: `_year=2020` is a value, `_temporary` is none."""
    for folder in ("_year=2020", "_temporary", "__MACOSX"):
        (tmp_path / folder).mkdir()
        inputs.jsonl(tmp_path / folder / "a.jsonl", [{"text": folder}])
    assert rows_of(tmp_path, "_year", "text") == [("2020", "_year=2020", None)]


def test_links_between_folders_double_nothing(tmp_path, inputs):
    """Each has a link to the other: it is followed once."""
    for name, other in (("x", "y"), ("y", "x")):
        (tmp_path / name).mkdir()
        (tmp_path / name / other).symlink_to(tmp_path / other)
        inputs.jsonl(tmp_path / name / "a.jsonl", [{"text": name}])
    assert rows_of(tmp_path / "x", "text") == [("x", None), ("y", None)]
    (tmp_path / "x" / "top").symlink_to(tmp_path)
    assert rows_of(tmp_path / "x", "text") == [("x", None), ("y", None)]


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        *((kind, "below the input") for kind in ("delta", "hudi", "iceberg")),
        *((kind, "by a pattern") for kind in ("delta", "hudi", "iceberg")),
        *((kind, "a part of it") for kind in ("delta", "hudi")),
    ],
)
def test_files_of_a_table_are_not_taken_for_its_rows(tmp_path, kind, place):
    """Deleted rows are still in them; a table of Delta is read under its own name."""
    url = tmp_path / "all" / "table"
    deltalake.write_deltalake(
        url, pa.table({"text": ["a", "b"], "lang": ["de", "de"]}), partition_by=["lang"]
    )
    deltalake.DeltaTable(url).delete("text = 'a'")
    if kind != "delta":
        log = {"hudi": ".hoodie", "iceberg": "metadata"}[kind]
        (url / "_delta_log").rename(url / log)
        (url / log / "v1.metadata.json").write_text("{}")
    inputs = {"below the input": url.parent, "by a pattern": url / "lang*"}
    with pytest.raises(OptionError, match=rf"(?i){kind} table.*read_{kind}"):
        cut_input(str(inputs.get(place, url / "lang=de")), 10)


def test_notes_beside_photos_are_no_table(tmp_path, inputs):
    """`a.metadata.json` is one of Iceberg's where it keeps them alone."""
    (tmp_path / "a.jpg").write_bytes(inputs.picture(1))
    (tmp_path / "a.metadata.json").write_text(json.dumps([{"text": "a"}]))
    assert rows_of(tmp_path, "text") == [("a", None)]


@pytest.mark.parametrize("name", ["a b", "50%20off", "c#d", "e?f", "photos [1]", "\u00fc", "t=%3A"])
def test_keys_of_a_store_are_what_they_are(bucket, name):
    """No escape is one: another object may have the name that it would mean."""
    for key in (name, unquote(name)):
        body = json.dumps({"text": key}).encode()
        bucket.put_object(Bucket="data", Key=f"{name}/{key}/{key}.jsonl", Body=body)
    url = f"s3://data/{name}"
    assert rows_of(f"{url}/{name}/{name}.jsonl", "text") == [(name, None)]
    assert set(rows_of(url, "text")) == {(name, None), (unquote(name), None)}
    assert set(rows_of(f"{url}/*/*.jsonl".replace("[", "?"), "text")) >= {(name, None)}


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("/no/a.jsonl", "/no"),
        ("/none.jsonl", "/"),
        ("none.jsonl", "."),
        ("/no/*/a.jsonl", "/no"),
        ("/n*", "/"),
    ],
)
def test_relative_images_start_where_their_table_lies(url, folder):
    """Also in the root of a machine, where containers have their inputs."""
    assert folder_of(url) == folder
