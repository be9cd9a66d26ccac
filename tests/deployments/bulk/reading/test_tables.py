"""Types over files, names, what is refused or lost, and which blocks a worker reads."""

import bz2
import datetime
import gzip
import json
import lzma
import os
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet as pq
import pytest

from deployments.bulk.reading import blocks
from deployments.bulk.reading.blocks import cut_input
from deployments.model.errors import OptionError
from tests.deployments.bulk.reading.reading import read_all, read_plan, rows_of

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


# Files by the rows of each, and what every value of `x` is then.
MIXED = {
    "numbers, then text": ([{"x": 1}], [{"x": "SKU-2"}], ["1", "SKU-2"]),
    "null, then text": ([{"x": None}], [{"x": "a"}], [None, "a"]),
    "null, then numbers": ([{"x": None}], [{"x": 7}], [None, 7]),
    "missing, then numbers": ([{"y": 1}], [{"x": 3}], [None, 3]),
    "whole, then broken": ([{"x": 1}], [{"x": 1.5}], [1.0, 1.5]),
    "small, then large": ([{"x": 1}], [{"x": 2**60}], [1, 2**60]),
    "larger than Arrow's": ([{"x": 1}], [{"x": 2**70}], ["1", str(2**70)]),
    "empty lists, then texts": ([{"x": []}], [{"x": ["a"]}], [[], ["a"]]),
    "lists, then text": ([{"x": [1, "b"]}], [{"x": "a"}], ['[1,"b"]', "a"]),
    "truth, then numbers": ([{"x": True}], [{"x": 2}], ["true", "2"]),
    "objects that grow": ([{"x": {"a": 1}}], [{"x": {"b": "c"}}], None),
    "dates stay text": ([{"x": "2020-01-01"}], [{"x": "2021-01-01T00:00:00Z"}], None),
    "lists of dates": ([{"x": ["2020-01-01"]}], [{"x": []}], [["2020-01-01"], []]),
}


@pytest.mark.parametrize("kind", MIXED)
@pytest.mark.parametrize("one_file", [True, False])
def test_types_come_from_all_of_the_input(tmp_path, kind, one_file):
    """A value that fits nowhere is text in a column of text; none is lost."""
    first, second, expected = MIXED[kind]
    expected = expected or [
        {"a": 1, "b": None} if kind.startswith("objects") else first[0]["x"],
        {"a": None, "b": "c"} if kind.startswith("objects") else second[0]["x"],
    ]
    names = ["a.jsonl", "a.jsonl"] if one_file else ["a.jsonl", "b.jsonl"]
    for name, rows in zip(names, (first, second), strict=True):
        with (tmp_path / name).open("a") as file:
            file.writelines(json.dumps({"text": "t"} | row) + "\n" for row in rows)
    rows = rows_of(tmp_path, "x", block_rows=1)
    assert rows == [(value, None) for value in expected]


def test_hive_folders_give_columns_and_their_marks_are_no_rows(tmp_path):
    """`lang=de` is a column where it is asked for."""
    for lang in ("de", "fr"):
        folder = tmp_path / f"lang={lang}"
        folder.mkdir()
        pq.write_table(pa.table({"text": [f"text {lang}"]}), folder / "part-0.parquet")
        (folder / ".part-0.parquet.crc").write_bytes(b"x")
    (tmp_path / "_SUCCESS").write_bytes(b"")
    assert cut_input(str(tmp_path), 10).lost == {}
    expected = [("de", "text de", None), ("fr", "text fr", None)]
    assert rows_of(tmp_path, "lang", "text") == expected


def test_images_are_bytes_paths_or_structs_of_both(tmp_path, inputs):
    """A list of images in one row is refused by the column's name."""
    image = pa.array([{"bytes": b"a", "path": "a.png"}], STRUCT)
    pq.write_table(pa.table({"image": image}), tmp_path / "a.parquet")
    assert read_all(tmp_path)["image"].to_pylist() == [{"bytes": b"a", "path": "a.png"}]
    image = pa.array([[b"a", b"b"]], pa.list_(pa.binary()))
    pq.write_table(pa.table({"image": image}), tmp_path / "a.parquet")
    with pytest.raises(OptionError, match=r"column image is list<.*one in each row"):
        read_all(tmp_path)


def test_files_of_several_kinds_are_read_packed_or_not(tmp_path, inputs):
    """What is not read is named; files beside the data that hold no rows are passed over."""
    inputs.jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"text\nb\n"))
    for name, codec in (("c.jsonl.zst", "zstd"), ("d.jsonl.bz2", "bz2")):
        with pa.CompressedOutputStream(str(tmp_path / name), codec) as file:
            file.write(b'{"text": "%s"}\n' % name[:1].encode())
    inputs.parquet(tmp_path / "e.parquet", {"text": ["e"]})
    (tmp_path / "e1.jsonl.xz").write_bytes(lzma.compress(b'{"text": "f"}\n'))
    (tmp_path / "f.xlsx").write_bytes(b"x")
    (tmp_path / "g.png").write_bytes(inputs.picture(1))
    for name in ("README.md", "a.jsonl.crc", "_SUCCESS", ".hidden.jsonl"):
        (tmp_path / name).write_bytes(b"x")
    plan = cut_input(str(tmp_path), 10)
    assert set(plan.lost) == {str(tmp_path / "f.xlsx"), str(tmp_path / "g.png")}
    assert read_plan(plan)["text"].to_pylist() == list("abcdef")
    assert cut_input(str(tmp_path), 10, ("*.xlsx", "g.*")).lost == {}


def test_broken_files_among_good_ones_are_named(tmp_path, inputs):
    """A Parquet file without its end, one of no bytes: the others are read."""
    for name in ("0", "1", "3"):
        inputs.parquet(tmp_path / f"{name}.parquet", {"text": [name]})
    (tmp_path / "1.parquet").write_bytes((tmp_path / "1.parquet").read_bytes()[:-20])
    (tmp_path / "2.parquet").write_bytes(b"")
    plan = cut_input(str(tmp_path), 10)
    assert sorted(plan.lost) == [str(tmp_path / f"{i}.parquet") for i in (1, 2)]
    assert read_plan(plan)["text"].to_pylist() == ["0", "3"]


def test_packed_files_of_several_members_are_read_to_their_end(tmp_path):
    """As `cat a.gz b.gz` makes them, and with the zeros that a tape adds; half a file is lost."""
    one, other = (gzip.compress(b'{"text": "%s"}\n' % x) for x in (b"a", b"b"))
    (tmp_path / "a.jsonl.gz").write_bytes(one + other + bytes(512))
    (tmp_path / "b.jsonl.gz").write_bytes(other[:-10])
    plan = cut_input(str(tmp_path), 10)
    assert read_plan(plan)["text"].to_pylist() == ["a", "b"]
    assert list(plan.lost) == [str(tmp_path / "b.jsonl.gz")]


@pytest.mark.parametrize(
    ("end", "packed", "place"),
    [("gz", gzip.compress, 10), ("xz", lzma.compress, 500), ("bz2", bz2.compress, 500)],
)
def test_a_packed_file_with_other_bytes_in_it_is_lost_by_name(tmp_path, end, packed, place):
    """Each library has its own errors for that; the other file is read."""
    data = bytearray(packed(os.urandom(2000).hex().encode()))
    data[place : place + 40] = b"\xff" * 40
    (tmp_path / f"a.jsonl.{end}").write_bytes(data)
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n')
    plan = cut_input(str(tmp_path), 10)
    assert list(plan.lost) == [str(tmp_path / f"a.jsonl.{end}")]
    assert read_plan(plan)["text"].to_pylist() == ["b"]


def test_times_and_numbers_become_text_without_quotes(tmp_path):
    """Where another file has text in their column."""
    values = {"x": [datetime.datetime(2020, 1, 2, 3, tzinfo=datetime.UTC)], "y": [1.5]}
    pq.write_table(pa.table({"text": ["a"], **values}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"text": "b", "x": "soon", "y": "much"}\n')
    found = rows_of(tmp_path, "x", "y")
    assert found == [("2020-01-02 03:00:00+00:00", "1.5", None), ("soon", "much", None)]


@pytest.mark.parametrize("end", ["jsonl", "parquet"])
def test_a_field_may_lie_in_a_column_whose_name_has_dots(tmp_path, inputs, end):
    """In files of every kind."""
    rows = [{"id": 1, "a.b": {"c.d": "red"}}, {"id": 2, "a.b": None}]
    if end == "jsonl":
        inputs.jsonl(tmp_path / "a.jsonl", rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    names = ("id", "a.b.c.d")
    assert rows_of(tmp_path, *names, text="a.b.c.d") == [(1, "red", None), (2, None, None)]


NAMES = ["photos [2021]", "a b", "50%20off", "c#d", "line\nend", os.fsdecode(b"latin-\xe9")]


@pytest.mark.parametrize("name", NAMES)
def test_what_exists_under_a_name_is_that_file(tmp_path, inputs, name):
    """Brackets, blanks, escapes, line ends, bytes that are no UTF-8: folders, files, images."""
    folder = tmp_path / name
    folder.mkdir()
    inputs.jsonl(folder / f"{name}.jsonl", [{"text": "a"}])
    assert rows_of(os.fspath(folder / f"{name}.jsonl"), "text") == [("a", None)]
    assert rows_of(os.fspath(folder), "text") == [("a", None)]
    (folder / f"{name}.jsonl").unlink()
    (folder / f"{name}.png").write_bytes(inputs.picture(1))
    (path,) = read_all(os.fspath(folder))["path"].to_pylist()
    plain = os.fspath(folder / f"{name}.png")
    assert path == plain if plain.isprintable() or "\n" in name else path.startswith("file:///")


def test_a_folder_of_pictures_is_a_column_of_paths(tmp_path, inputs):
    """Pictures of subfolders count, hidden files do not; a pattern chooses."""
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "a.jpg", "sub/c.WEBP", ".hidden.png", "notes.md"):
        (tmp_path / name).write_bytes(inputs.picture(1))
    table = read_all(tmp_path, 2)
    names = [Path(x).relative_to(tmp_path).as_posix() for x in table["path"].to_pylist()]
    assert names == ["a.jpg", "b.png", "sub/c.WEBP"]
    assert read_all(f"{tmp_path}/*.jpg", 2)["path"].to_pylist() == [str(tmp_path / "a.jpg")]


def test_a_link_to_a_folder_above_doubles_nothing(tmp_path, inputs):
    """Links to other folders are followed."""
    for name in ("in", "other"):
        (tmp_path / name).mkdir()
        inputs.jsonl(tmp_path / name / "a.jsonl", [{"text": name}])
    (tmp_path / "in" / "self").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "x").symlink_to(tmp_path / "other")
    assert rows_of(tmp_path / "in", "text") == [("in", None), ("other", None)]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no files"),
        ({"a.xlsx": b"x"}, r"a\.xlsx: no known kind of file.*known are .parquet"),
        ({"a.parquet": b"x"}, r"a\.parquet: it cannot be read"),
        ({"a.jsonl": b"\n\n"}, "no rows"),
        ({"a.jsonl": b'{"body": "x"}\n'}, "no column text or image; its columns are body"),
        ({"metadata/v1.metadata.json": b"{}", "a.parquet": b"x"}, r"Iceberg table.*read_iceberg"),
        ({"_delta_log/0.json": b"{}", "a.jsonl": b'{"text": "a"}'}, "no Delta table"),
    ],
)
def test_an_input_that_cannot_be_used_is_refused(tmp_path, files, message):
    """The message says what was found."""
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(OptionError, match=message):
        read_all(tmp_path, 10)


def test_columns_that_are_missing_or_reserved_are_refused(tmp_path, inputs):
    """A kept column must exist and leave the output's own names free; others may be anything."""
    path = inputs.jsonl(tmp_path / "a.jsonl", [{"text": "a", "error": "b", "_id": 1, "row": "r"}])
    with pytest.raises(OptionError, match="lacks id"):
        read_all(path, 1, kept=("id",))
    with pytest.raises(OptionError, match="may not be named error"):
        read_all(path, 1, kept=("error",))
    table = read_all(path, 1, kept=("_id", "row"))
    assert (table["_id"].to_pylist(), table["row"].to_pylist()) == ([1], ["r"])


def test_a_large_input_is_looked_at_in_shares(tmp_path, inputs, monkeypatch):
    """The plan is that of looking here; shares of the files go to tasks of Ray."""
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 3.0})
    monkeypatch.setattr("ray.get", lambda found: found)
    task = SimpleNamespace(remote=blocks._look_at_some)
    monkeypatch.setattr("ray.remote", lambda **_: lambda _function: task)
    for i in range(20):
        inputs.parquet(tmp_path / f"{i:02}.parquet", {"text": [str(i)] * (i % 3)})
    here = cut_input(str(tmp_path), 2)
    monkeypatch.setattr(blocks, "SMALL_BYTES", 0)
    assert cut_input(str(tmp_path), 2) == here
    assert here.num_rows == sum(i % 3 for i in range(20))
