"""Where the rows of JSONL and CSV files lie, and how they are read."""

import csv
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

from deployments.bulk.reading.files import open_input
from deployments.model.errors import OptionError

CHUNK_BYTES = 16 * 1024 * 1024
NEWLINE, QUOTE, RETURN = ord("\n"), ord('"'), ord("\r")
MARK = b"\xef\xbb\xbf"  # written before UTF-8 by some programs

csv.field_size_limit(2**31 - 1)

Record = dict[str, Any]  # Any: whatever JSON holds
ParsedRow = tuple[Record, str | None]


def spans(url: str, rows: int, start: int, quotes: bool) -> Iterator[tuple[int, int, int]]:
    """Yield (first byte, byte after the last, rows) of runs of at most `rows` rows.

    Empty lines are no rows. With `quotes`, a newline between quotes ends no row (CSV).
    """
    count, first, last = 0, start, start
    for end in row_ends(url, start, quotes):
        count += 1
        last = end
        if count == rows:
            yield first, last, count
            first, count = last, 0
    if count:
        yield first, last, count


def row_ends(url: str, start: int, quotes: bool) -> Iterator[int]:
    """Yield the byte after each row that is not empty."""
    begin, position, is_open, tail = start, start, False, b""
    with open_input(url) as file:
        file.seek(start)
        while chunk := file.read(CHUNK_BYTES):
            data = np.frombuffer(chunk, np.uint8)
            ends = np.flatnonzero(data == NEWLINE)
            if quotes:
                odd = (np.cumsum(data == QUOTE) + is_open) % 2 == 1
                ends = ends[~odd[ends]]
                is_open = bool(odd[-1])
            for index in ends.tolist():
                end = position + index + 1
                line = tail + chunk[max(0, begin - position) : index]
                if line.strip(b"\r"):
                    yield end
                begin, tail = end, b""
            # Of a line across chunks, two bytes tell whether it is empty.
            tail = (tail + chunk[max(0, begin - position) :])[:2]
            position += len(chunk)
    if tail.strip(b"\r"):
        yield position


def header(url: str) -> tuple[tuple[str, ...], int]:
    """Return the column names of a CSV file, and the byte after them.

    Raises:
        OptionError: there are none, or one occurs twice.
    """
    end = next(row_ends(url, 0, quotes=True), 0)
    with open_input(url) as file:
        line = file.read(end).removeprefix(MARK).decode("utf-8", errors="replace")
    names = next((tuple(row) for row in csv.reader(io.StringIO(line, newline="")) if row), ())
    if not names or len(set(names)) != len(names):
        raise OptionError(
            f"{url!r} needs a first line with the names of its columns, all different"
        )
    return names, end


def read_jsonl(data: bytes) -> list[ParsedRow]:
    """Return each line's object, or why it is none."""
    return [_parse_json(line) for line in data.split(b"\n") if line.strip(b"\r")]


def _parse_json(line: bytes) -> ParsedRow:
    try:
        record = orjson.loads(line.removeprefix(MARK))
    except orjson.JSONDecodeError as error:
        return {}, f"the line is not JSON: {error}"
    if not isinstance(record, dict):
        return {}, f"the line is no JSON object but {type(record).__name__}"
    return record, None


def read_csv(data: bytes, names: tuple[str, ...]) -> list[ParsedRow]:
    """Return each row's fields; an empty one is null."""
    text = data.decode("utf-8", errors="surrogateescape")
    rows = (row for row in csv.reader(io.StringIO(text, newline="")) if row)
    return [_parse_fields(row, names) for row in rows]


def _parse_fields(row: list[str], names: tuple[str, ...]) -> ParsedRow:
    if len(row) != len(names):
        return {}, f"the row has {len(row)} fields, the first line {len(names)}"
    return {name: value or None for name, value in zip(names, row, strict=True)}, None
