"""JSON as other programs leave it."""

import json
from pathlib import Path

import pytest

from deployments.bulk.reading import files
from deployments.bulk.reading.blocks import cut_input
from tests.deployments.bulk.reading.reading import read_all, rows_of


@pytest.mark.parametrize("chunk_bytes", [1, 2, 9, 1000])
def test_jsonl_is_cut_between_lines(tmp_path, monkeypatch, chunk_bytes):
    """Each line that is not empty is one row, a last one without newline too."""
    monkeypatch.setattr(files, "CHUNK_BYTES", chunk_bytes)
    rows = [{"id": i, "text": 'a "quote' * (i % 3)} for i in range(7)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(("\r\n\n".join(json.dumps(row) for row in rows)).encode())
    assert rows_of(path, "id", "text") == [(row["id"], row["text"], None) for row in rows]


@pytest.mark.parametrize("part_bytes", [40, 64, 100, 1000])
def test_a_large_jsonl_is_looked_at_in_parts(tmp_path, monkeypatch, part_bytes):
    """Every line belongs to the part in which it begins, wherever the parts end."""
    monkeypatch.setattr("deployments.bulk.reading.blocks.PART_BYTES", part_bytes)
    rows = [{"id": i, "text": "x" * (i * 7 % 31)} for i in range(40)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row[0] for row in rows_of(path, "id", "text", block_rows=4)] == list(range(40))


def test_json_that_python_writes_is_read(tmp_path):
    """NaN, Infinity, half an emoji, bytes that are no UTF-8; what is no object is a bad row."""
    lines = [
        b'{"text": "a", "x": NaN}',
        b'{"text": "b", "x": -Infinity}',
        b'{"text": "half \\ud83d of one", "x": 1}',
        b'{"text": "caf\xe9", "x": 1}',
        b'{"text": ',
        b"[1]",
        b'{"text": "c", "x": 2}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    rows = rows_of(tmp_path / "a.jsonl", "text", "x")
    texts = ["a", "b", "half \ufffd of one", "caf\u00e9", None, None, "c"]
    assert [row[0] for row in rows] == texts
    assert str([row[1] for row in rows][:2]) == "[nan, -inf]"
    assert [bool(row[2]) for row in rows] == [False] * 4 + [True, True, False]
    assert rows[5][2] == "the line is no JSON object but list"


@pytest.mark.parametrize("first", [b"null\n", b" null\n", b"\xef\xbb\xbfnull\n", b"null, 1\n"])
def test_a_null_before_the_first_object_is_a_bad_row(tmp_path, first):
    """Arrow's reader of JSON (26.0.1) takes the whole process down with it."""
    (tmp_path / "a.jsonl").write_bytes(first + b'{"text": "a"}\nnull\n')
    rows = rows_of(tmp_path / "a.jsonl", "text")
    assert [row[0] for row in rows] == [None, "a", None]
    assert [bool(row[1]) for row in rows] == [True, False, True]


@pytest.mark.parametrize("depth", [900, 3000])
def test_a_value_that_is_too_deep_is_a_bad_row(tmp_path, depth):
    """The others are read."""
    deep = '{"text": "a", "x": ' + '{"x": ' * depth + "1" + "}" * (depth + 1)
    (tmp_path / "a.jsonl").write_text(f'{deep}\n{{"text": "b"}}\n')
    assert rows_of(tmp_path / "a.jsonl", "text")[1] == ("b", None)


def test_marks_between_lines_are_none_of_their_text(tmp_path):
    """As `cat` leaves them, of files that begin with one."""
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n\xef\xbb\xbf{"text": "b"}\n')
    assert rows_of(tmp_path / "a.jsonl", "text") == [("a", None), ("b", None)]


def test_json_files_are_lists_or_lines(tmp_path):
    """A list of objects is rows, so are lines, as Spark writes them; one object is not."""
    (tmp_path / "a.json").write_text('[{"text": "a"},\n {"text": "b"}, 3]')
    (tmp_path / "b.json").write_text('{"text": "c"}\n{"text": "d"}\n')
    (tmp_path / "c.json").write_text('{\n "name": "config",\n "version": 2}\n')
    plan = cut_input(str(tmp_path), 2)
    assert "one JSON value" in plan.lost[str(tmp_path / "c.json")]
    (tmp_path / "c.json").unlink()
    table = read_all(tmp_path, 2)
    assert table["text"].to_pylist() == ["a", "b", None, "c", "d"]


def test_fields_of_columns_have_dotted_names(tmp_path):
    """A text and an id may lie below a column; a column of that very name comes first."""
    rows = [{"m": {"text": "red", "id": 7}, "m.id": "own"}, {"m": None}, {"m": {"text": "blue"}}]
    path = Path(tmp_path / "a.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = read_all(path, text="m.text", kept=("m.id",))
    assert table["m.text"].to_pylist() == ["red", None, "blue"]
    assert table["m.id"].to_pylist() == ["own", None, None]
