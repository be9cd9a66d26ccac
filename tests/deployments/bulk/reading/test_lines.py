import csv
import io
import json
from pathlib import Path

import pytest

from deployments.bulk.reading import lines
from deployments.model.errors import OptionError

CSV = 'id,text\r\n1,"two\nlines, ""quoted"""\r\n\r\n2,plain\r\n3,"three\n\n\nlines"\n4,last'


def spans(path: Path, rows: int, start: int = 0, quotes: bool = False) -> list[tuple[int, ...]]:
    return list(lines.spans(str(path), rows, start, quotes))


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 5, 7, 11, 1000])
@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_csv_is_cut_where_the_csv_module_sees_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, rows: int
) -> None:
    """Newlines in quotes and empty lines end no row, wherever the chunks end."""
    monkeypatch.setattr(lines, "CHUNK_BYTES", chunk_bytes)
    path = tmp_path / "a.csv"
    path.write_bytes(CSV.encode())
    names, body = lines.header(str(path))
    assert names == ("id", "text")
    found = []
    for start, stop, count in spans(path, rows, body, quotes=True):
        part = lines.read_csv(CSV.encode()[start:stop], names)
        assert len(part) == count <= rows
        found += [tuple(record.values()) for record, error in part if error is None]
    expected = [tuple(row) for row in csv.reader(io.StringIO(CSV, newline="")) if row][1:]
    assert found == expected
    assert len(expected) == 4


@pytest.mark.parametrize("chunk_bytes", [1, 2, 9, 1000])
def test_jsonl_is_cut_between_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    """Each line that is not empty is one row, a last one without newline too."""
    monkeypatch.setattr(lines, "CHUNK_BYTES", chunk_bytes)
    rows = [{"id": i, "text": 'a "quote' * (i % 3)} for i in range(7)]
    data = ("\r\n\n".join(json.dumps(row) for row in rows)).encode()
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    found = spans(path, 3)
    assert [count for _, _, count in found] == [3, 3, 1]
    parsed = [row for start, stop, _ in found for row in lines.read_jsonl(data[start:stop])]
    assert parsed == [(row, None) for row in rows]


def test_a_bad_line_is_one_bad_row() -> None:
    """What is not a JSON object gets a reason, its neighbours their values."""
    parsed = lines.read_jsonl(b'{"a": 1}\n{"a": \n[1]\n\xff\xfe\n{"a": 2}\n')
    assert [error is None for _, error in parsed] == [True, False, False, False, True]
    assert parsed[2][1] == "the line is no JSON object but list"


def test_a_csv_row_of_another_length_is_a_bad_row() -> None:
    """Fields beyond or short of the first line's are no row."""
    parsed = lines.read_csv(b"1,a\n2\n3,b,c\n4,\n", ("id", "text"))
    assert [error for _, error in parsed] == [
        None,
        "the row has 1 fields, the first line 2",
        "the row has 3 fields, the first line 2",
        None,
    ]
    assert parsed[3][0] == {"id": "4", "text": None}


@pytest.mark.parametrize("content", ["", "a,a\n1,2\n"])
def test_a_csv_file_needs_names(tmp_path: Path, content: str) -> None:
    """No first line, or a name that occurs twice, is refused with the file's name."""
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(OptionError, match=r"a\.csv.*names of its columns"):
        lines.header(str(path))
