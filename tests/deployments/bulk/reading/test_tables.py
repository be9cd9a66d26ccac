"""Columns of Parquet and its like, types over files, and what is refused or lost."""

import datetime
import gzip
import json
import lzma
import os
from pathlib import Path
from types import SimpleNamespace

import deltalake
import lance
import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet as pq
import pytest

from deployments.bulk.reading import blocks
from deployments.bulk.reading.blocks import cut_input
from deployments.bulk.reading.formats import MODULES
from deployments.bulk.reading.tables import BlockReader, Layout
from deployments.model.errors import OptionError
from tests.deployments.bulk.reading.reading import read_all, read_plan, rows_of

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize("block_rows", [1, 3, 7, 100])
@pytest.mark.parametrize("kind", ["parquet", "orc", "feather"])
def test_rows_come_in_order_from_several_files(tmp_path, block_rows, kind):
    """Whatever the row groups, each row is read once, with its number in the input."""
    for part, start in (("a", 0), ("b", 10)):
        values = list(range(start, start + 10))
        table = pa.table({"id": values, "text": [str(x) for x in values], "other": values})
        path = tmp_path / f"{part}.{kind}"
        if kind == "parquet":
            pq.write_table(table, path, row_group_size=4)
        elif kind == "orc":
            pyarrow.orc.write_table(table, path)
        else:
            pyarrow.feather.write_feather(table, path, chunksize=4)
    table = read_all(tmp_path, block_rows, kept=("id",))
    assert table["id"].to_pylist() == table["row"].to_pylist() == list(range(20))
    assert table["text"].to_pylist() == [str(x) for x in range(20)]


@pytest.mark.parametrize("block_rows", [1, 4, 100])
def test_a_lance_table_is_read_as_it_was_when_the_job_was_cut(tmp_path, block_rows):
    """Without the rows that were deleted before, and without those that came later."""
    url = str(tmp_path / "in.lance")
    for start in (0, 7):
        table = pa.table({"id": range(start, start + 7), "m": [{"text": f"t{start}"}] * 7})
        lance.write_dataset(table, url, mode="append" if start else "create")
    lance.dataset(url).delete("id in (2, 9)")
    plan = cut_input(url, block_rows)
    lance.write_dataset(table, url, mode="append")
    found = read_plan(plan, text="m.text", kept=("id",))
    assert found["id"].to_pylist() == [x for x in range(14) if x not in (2, 9)]
    assert found["m.text"].to_pylist() == ["t0"] * 6 + ["t7"] * 6
    assert found["row"].to_pylist() == list(range(12))
    assert cut_input(url, block_rows).fingerprint != plan.fingerprint


def test_a_delta_table_is_its_files_of_now(tmp_path, inputs):
    """Without rows that were deleted or written over; its partitions are columns."""
    url = tmp_path / "in"
    table = pa.table({"text": ["a", "b", "c"], "lang": ["de", None, "d e"]})
    deltalake.write_deltalake(url, table, partition_by=["lang"])
    deltalake.DeltaTable(url).delete("text = 'a'")
    deltalake.write_deltalake(url, table.slice(0, 1), mode="append")
    deltalake.DeltaTable(url).update(updates={"text": "'new'"}, predicate="text = 'c'")
    assert len(list(url.rglob("*.parquet"))) > 3
    plan = cut_input(str(url), 2)
    assert plan.lost == {}
    found = read_plan(plan, kept=("lang",))
    rows = zip(found["lang"].to_pylist(), found["text"].to_pylist(), strict=True)
    expected = {(None, "b"), ("de", "a"), ("d e", "new")}
    assert sorted(rows, key=str) == sorted(expected, key=str)


def test_a_delta_table_whose_files_do_not_tell_its_rows_is_refused(tmp_path):
    """Deleted rows may be noted beside a file, and columns may have other names in it."""
    deltalake.write_deltalake(tmp_path, pa.table({"text": ["a"]}))
    log = tmp_path / "_delta_log" / f"{0:020}.json"
    plain = log.read_text()
    features = '"readerFeatures":["deletionVectors"],"writerFeatures":["deletionVectors"],'
    versions = '"minReaderVersion":1,"minWriterVersion":2'
    for needs in (
        '"minReaderVersion":2,"minWriterVersion":5',
        f'{features}"minReaderVersion":3,"minWriterVersion":7',
    ):
        log.write_text(plain.replace(versions, needs))
        with pytest.raises(OptionError, match=r"Delta table.*read_delta"):
            cut_input(str(tmp_path), 2)
    log.write_text(plain)
    assert cut_input(str(tmp_path), 2).num_rows == 1


# Files by the rows of each, and what every value of `x` is then.
MIXED = {
    "numbers, then text": ([{"x": 1}], [{"x": "SKU-2"}], ["1", "SKU-2"]),
    "null, then text": ([{"x": None}], [{"x": "a"}], [None, "a"]),
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


def test_parquet_files_of_several_schemas(tmp_path):
    """Nulls, widths, a missing column, another order, dictionaries."""
    tables = [
        pa.table({"id": pa.array([1], pa.int32()), "text": pa.nulls(1), "lang": ["de"]}),
        pa.table({"text": ["b"], "id": pa.array([2**40], pa.int64())}),
        pa.table({"id": pa.array([3], pa.int16()), "text": pa.array(["c"]).dictionary_encode()}),
        pa.table({"id": pa.array([], pa.int64()), "text": pa.array([], pa.string())}),
    ]
    for i, table in enumerate(tables):
        pq.write_table(table, tmp_path / f"{i}.parquet")
    assert rows_of(tmp_path, "id", "text", "lang") == [
        (1, None, "de", None),
        (2**40, "b", None, None),
        (3, "c", None, None),
    ]
    pq.write_table(pa.table({"id": ["x"], "text": ["d"]}), tmp_path / "4.parquet")
    assert [row[0] for row in rows_of(tmp_path, "id", "text")] == ["1", str(2**40), "3", "x"]


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


def test_a_file_that_breaks_later_gives_each_of_its_rows_an_error(tmp_path, inputs):
    """The number of rows is that of the file's footer."""
    path = inputs.parquet(tmp_path / "a.parquet", {"text": [f"text {x}" * 50 for x in range(500)]})
    plan = cut_input(str(path), 1000)
    data = bytearray(path.read_bytes())
    data[10:2000] = bytes(1990)
    path.write_bytes(data)
    table = BlockReader(Layout.choose(plan, None, None, ())).read(plan.blocks[0])
    assert table.num_rows == 500
    assert table["error"].null_count == 0
    assert "cannot be read" in table["error"][0].as_py()


@pytest.mark.parametrize(
    ("name", "opened"),
    [("a.parquet", 2), ("a.orc", 2), ("a.json", 2), ("a.csv.gz", 2), ("a.csv", 5), ("a.jsonl", 5)],
)
def test_a_worker_of_several_reads_what_is_packed_once(tmp_path, monkeypatch, name, opened):
    """Blocks that others read are passed over where finding the next is as slow as reading up."""
    rows = [{"id": str(i), "text": f"t{i}"} for i in range(50)]
    text = {
        "json": json.dumps(rows),
        "jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "csv": "id,text\n" + "".join(f"{row['id']},{row['text']}\n" for row in rows),
    }
    path, kind = tmp_path / name, name.split(".")[1]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=20)
    elif kind == "orc":
        pyarrow.orc.write_table(pa.Table.from_pylist(rows), path)
    else:
        data = text[kind].encode()
        path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    plan = cut_input(str(path), 7)
    calls, module = [], MODULES[plan.blocks[0].kind]
    open_rows = module.rows
    monkeypatch.setattr(module, "rows", lambda *x: calls.append(x) or open_rows(*x))
    reader = BlockReader(Layout.choose(plan, None, None, ("id",)))
    for number in (0, 1, 3, 5, 7, 2):  # 7 is the last, of one row; a lost worker's block comes late
        block = plan.blocks[number]
        expected = [row["id"] for row in rows[number * 7 : number * 7 + 7]]
        assert reader.read(block)["id"].to_pylist() == expected
    assert len(calls) == opened


def test_packed_files_of_several_members_are_read_to_their_end(tmp_path):
    """As `cat a.gz b.gz` makes them, and with the zeros that a tape adds; half a file is lost."""
    one, other = (gzip.compress(b'{"text": "%s"}\n' % x) for x in (b"a", b"b"))
    (tmp_path / "a.jsonl.gz").write_bytes(one + other + bytes(512))
    (tmp_path / "b.jsonl.gz").write_bytes(other[:-10])
    plan = cut_input(str(tmp_path), 10)
    assert read_plan(plan)["text"].to_pylist() == ["a", "b"]
    assert list(plan.lost) == [str(tmp_path / "b.jsonl.gz")]


def test_times_and_numbers_become_text_without_quotes(tmp_path):
    """Where another file has text in their column."""
    values = {"x": [datetime.datetime(2020, 1, 2, 3, tzinfo=datetime.UTC)], "y": [1.5]}
    pq.write_table(pa.table({"text": ["a"], **values}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"text": "b", "x": "soon", "y": "much"}\n')
    found = rows_of(tmp_path, "x", "y")
    assert found == [("2020-01-02 03:00:00+00:00", "1.5", None), ("soon", "much", None)]


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
