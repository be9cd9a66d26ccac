from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deployments.bulk.reading.blocks import cut_input
from deployments.bulk.reading.tables import BlockReader, Layout, ParquetRows, guess_type
from deployments.model.errors import OptionError


def read_all(url: Path | str, block_rows: int, **columns: object) -> pa.Table:
    """Cut and read an input; checks that each block has the rows that were counted."""
    plan = cut_input(str(url), block_rows)
    chosen = {"text": None, "image": None, "kept": ()} | columns
    layout = Layout.choose(plan, **chosen)
    reader = BlockReader(layout)
    tables = [reader.read(block) for block in plan.blocks]
    assert [table.num_rows for table in tables] == [block.num_rows for block in plan.blocks]
    assert max(table.num_rows for table in tables) <= block_rows
    return pa.concat_tables(tables)


@pytest.mark.parametrize("block_rows", [1, 3, 7, 100])
def test_parquet_rows_come_in_order_from_several_files(
    tmp_path: Path, inputs: Any, block_rows: int
) -> None:
    """Whatever the row groups, each row is read once, with its number in the input."""
    for part, start in (("a", 0), ("b", 10)):
        values = list(range(start, start + 10))
        columns = {"id": values, "text": [str(x) for x in values]}
        inputs.parquet(tmp_path / f"{part}.parquet", columns, row_group_size=4)
    table = read_all(tmp_path, block_rows, kept=("id",))
    assert table["id"].to_pylist() == table["row"].to_pylist() == list(range(20))
    assert table["text"].to_pylist() == [str(x) for x in range(20)]


def test_parquet_can_be_read_backwards(tmp_path: Path, inputs: Any) -> None:
    """A block before the last one read is found again: a restarted reader may get any block."""
    path = str(inputs.parquet(tmp_path / "a.parquet", {"x": list(range(5000))}, row_group_size=700))
    rows = ParquetRows()
    expected = pq.read_table(path)
    for start, stop in ((4000, 4100), (10, 30), (30, 2500), (4999, 5000)):
        assert rows.read(path, start, stop, ["x"]).equals(expected.slice(start, stop - start))


def test_a_row_that_cannot_be_read_has_an_error(tmp_path: Path, inputs: Any) -> None:
    """Its neighbours and its place are not affected."""
    path = inputs.jsonl(tmp_path / "a.jsonl", [{"id": 1, "text": "a"}, {"id": 2, "text": "b"}])
    path.write_text(path.read_text() + 'broken\n{"id": "three", "text": "c"}\n')
    plan = cut_input(str(path), 10)
    layout = Layout("text", None, ("id",), {"id": pa.int64(), "text": pa.large_string()})
    table = BlockReader(layout).read(plan.blocks[0])
    assert table["id"].to_pylist() == [1, 2, None, None]
    assert table["text"].to_pylist() == ["a", "b", None, "c"]
    errors = table["error"].to_pylist()
    assert errors[:2] == [None, None]
    assert "not JSON" in errors[2]
    assert "id: the value is not int64" in errors[3]


def test_a_broken_file_gives_each_of_its_rows_an_error(tmp_path: Path, inputs: Any) -> None:
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


def test_a_folder_of_pictures_is_a_column_of_paths(tmp_path: Path, inputs: Any) -> None:
    """Pictures of subfolders count, hidden files and others do not."""
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "a.jpg", "sub/c.WEBP", ".hidden.png", "notes.md"):
        (tmp_path / name).write_bytes(inputs.picture(1))
    table = read_all(tmp_path, 2)
    names = [Path(x).relative_to(tmp_path).as_posix() for x in table["path"].to_pylist()]
    assert names == ["a.jpg", "b.png", "sub/c.WEBP"]
    assert read_all(f"{tmp_path}/*.jpg", 2)["path"].to_pylist() == [str(tmp_path / "a.jpg")]


def test_tars_have_keys_texts_and_pictures(tmp_path: Path, inputs: Any) -> None:
    """A sample without one of them has null."""
    inputs.tar(tmp_path / "1.tar", {"x.png": b"1", "x.txt": b"one", "y.txt": b"two"})
    inputs.tar(tmp_path / "2.tar", {"z.jpg": b"3"})
    table = read_all(tmp_path, 1)
    assert table["key"].to_pylist() == ["x", "y", "z"]
    assert table["image"].to_pylist() == [b"1", None, b"3"]
    assert table["text"].to_pylist() == ["one", "two", None]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no files"),
        ({"a.md": b"x"}, "no known kind"),
        ({"a.jsonl": b'{"text": 1}\n', "b.csv": b"text\na\n"}, "several kinds.*csv, jsonl"),
        ({"a.jsonl": b"\n\n"}, "no rows"),
        ({"a.jsonl": b'{"body": "x"}\n'}, "no column text or image; its columns are body"),
    ],
)
def test_an_input_that_cannot_be_used_is_refused(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    """The message says what was found."""
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(OptionError, match=message):
        read_all(tmp_path, 10)


def test_columns_that_are_missing_or_reserved_are_refused(tmp_path: Path, inputs: Any) -> None:
    """A kept column must exist and leave the output's own names free."""
    path = inputs.jsonl(tmp_path / "a.jsonl", [{"text": "a", "error": "b"}])
    with pytest.raises(OptionError, match="lacks id"):
        read_all(path, 1, kept=("id",))
    with pytest.raises(OptionError, match="may not be named error"):
        read_all(path, 1, kept=("error",))


def test_types_hold_all_values() -> None:
    """Mixed values are text; nulls alone are too."""
    assert guess_type([1, None, 2]) == pa.int64()
    assert guess_type([1, "a"]) == pa.large_string()
    assert guess_type([None]) == pa.large_string()
