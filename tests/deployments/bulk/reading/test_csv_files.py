"""CSV as other programs leave it."""

import csv
import gzip
import io

import pytest

from deployments.bulk.reading import files
from deployments.bulk.reading.blocks import cut_input
from tests.deployments.bulk.reading.reading import rows_of

CSV = 'id,text\r\n1,"two\nlines, ""quoted"""\r\n\r\n2,plain\r\n3,"three\n\n\nlines"\n4,last'


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 5, 7, 11, 1000])
@pytest.mark.parametrize("rows", [1, 2, 100])
def test_csv_is_cut_where_the_csv_module_sees_rows(tmp_path, monkeypatch, chunk_bytes, rows):
    """Newlines in quotes and empty lines end no row, wherever the chunks end."""
    monkeypatch.setattr(files, "CHUNK_BYTES", chunk_bytes)
    path = tmp_path / "a.csv"
    path.write_bytes(CSV.encode())
    expected = [tuple(row) for row in csv.reader(io.StringIO(CSV, newline="")) if row][1:]
    assert [row[:2] for row in rows_of(path, "id", "text", block_rows=rows)] == expected
    assert len(expected) == 4


SHOPS = {
    "an inch mark in a field": (b'id,text\n1,TV 55" wall\n2,red\n', ['TV 55" wall', "red"]),
    "two of them, rows apart": (b'id,text\n1,5" x\n2,red\n3,7" y\n', ['5" x', "red", '7" y']),
    "a quote that nobody closes": (
        b'id,text\n1,"red\n2,blue\n3,green\n',
        ['"red', "blue", "green"],
    ),
    "two such, rows apart": (b'id,text\n1,"a\n2,b\n3,"c\n4,d\n', ['"a', "b", '"c', "d"]),
    "quotes escaped by backslashes": (
        b'id,text\n1,"he said \\"hi\\", twice"\n2,ok\n',
        ['he said "hi", twice', "ok"],
    ),
    "bare returns": (b"id,text\r1,red\r2,blue\r", ["red", "blue"]),
    "semicolons": (b"id;text\n1;red, blue\n2;green\n", ["red, blue", "green"]),
    "tabs": (b"id\ttext\n1\tred, blue\n", ["red, blue"]),
    "a mark before UTF-8": (b"\xef\xbb\xbfid,text\n1,r\xc3\xa9d\n", ["r\u00e9d"]),
    "Windows-1252": (b"id,text\n1,caf\xe9 \x80 5\n2,red\n", ["caf\u00e9 \u20ac 5", "red"]),
    "UTF-16": ("id,text\n1,caf\u00e9\n2,\u8d64\n".encode("utf-16"), ["caf\u00e9", "\u8d64"]),
    "an index without a name": (b",id,text\n0,1,red\n1,2,blue\n", ["red", "blue"]),
    "a comma at the end of each line": (b"id,text,\n1,red,\n2,blue,\n", ["red", "blue"]),
    "blanks around names": (b"id , text\n1,red\n", ["red"]),
}


@pytest.mark.parametrize("kind", SHOPS)
@pytest.mark.parametrize("chunk_bytes", [3, 1000])
def test_csv_as_shops_write_it(tmp_path, monkeypatch, kind, chunk_bytes):
    """Every row is there, none is an error."""
    monkeypatch.setattr(files, "CHUNK_BYTES", chunk_bytes)
    content, expected = SHOPS[kind]
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    rows = rows_of(path, "id", "text", block_rows=2)
    assert [row[1:] for row in rows] == [(text, None) for text in expected]
    assert [row[0] for row in rows] == [str(n + 1) for n in range(len(expected))]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text\nred, blue\n", ["red, blue"]),
        ("id\ttext, of, all\ttext\n1\tx\tred\n", ["red"]),
        ("\tid\ttext\n0\t1\tred\n", ["red"]),
        ("id,text\n1,red\n", ["red"]),
    ],
)
def test_the_fields_of_a_tsv_lie_between_tabs(tmp_path, content, expected):
    """Whatever else is in the first line, unless it has other delimiters alone."""
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(content.encode()))
    assert rows_of(tmp_path / "a.tsv.gz", "text") == [(text, None) for text in expected]


def test_a_csv_row_of_another_length_is_one_bad_row(tmp_path):
    """Fields beyond or short of the first line's are no row."""
    (tmp_path / "a.csv").write_text('id,text\n1,a\n2\n3,b,c\n4,\n5,"d\n')
    rows = rows_of(tmp_path / "a.csv", "id", "text", block_rows=10)
    assert [row[2] for row in rows] == [
        None,
        "the row has 1 fields, the first line 2",
        "the row has 3 fields, the first line 2",
        None,
        None,
    ]
    assert rows[3][:2] == ("4", None)


@pytest.mark.parametrize("content", ["", "a,a\n1,2\n", ",,\n1,2,3\n", 'id,5"\n' + "1,2\n" * 5000])
def test_a_csv_file_without_names_is_lost_by_name(tmp_path, content):
    """No first line, a name that occurs twice, a quote that nobody closes; the other is read."""
    (tmp_path / "a.csv").write_text(content)
    (tmp_path / "b.csv").write_text("text\nred\n")
    plan = cut_input(str(tmp_path), 10)
    assert plan.num_rows == 1
    assert "names of its columns" in plan.lost[str(tmp_path / "a.csv")]


def test_a_field_that_is_too_long_loses_its_file_by_name(tmp_path):
    """The other file is read."""
    before = csv.field_size_limit(100)
    (tmp_path / "a.csv").write_text(f"text\n{'x' * 200}\n")
    (tmp_path / "b.csv").write_text("text\nred\n")
    try:
        plan = cut_input(str(tmp_path), 10)
    finally:
        csv.field_size_limit(before)
    assert plan.num_rows == 1
    assert "field larger than field limit" in plan.lost[str(tmp_path / "a.csv")]
