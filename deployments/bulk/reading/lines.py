"""Rows of JSON and CSV files, with the bytes where each ends."""

import csv
import itertools
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from deployments.bulk.reading.files import CHUNK_BYTES, chunks
from deployments.model.errors import OptionError

DELIMITERS = ",;\t|"
FIELD_CHARACTERS = 16 * 1024 * 1024  # more between two quotes is a quote that nobody closed
MAX_JSON_CHUNKS = 64  # 1 GiB, of a file that is one JSON list
HALVES = re.compile("[\ud800-\udfff]")
ESCAPED = {"doublequote": False, "escapechar": "\\"}  # quotes within quotes, as MySQL writes them
BARE = {"quoting": csv.QUOTE_NONE}  # quotes are characters like others

csv.field_size_limit(FIELD_CHARACTERS)

Record = dict[str, Any]  # Any: whatever JSON holds
ParsedRow = tuple[Record, str | None]
Line = tuple[bytes, int]
"""A line with its end, and the byte after it."""
Lines = Iterator[Line]
Rows = Iterator[tuple[ParsedRow, int]]
"""Rows, and the byte after each."""


def line_lists(parts: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield the lines of a file, many at once; they end with a newline, a return, or both."""
    tail = b""
    for part in parts:
        found = (tail + part).splitlines(keepends=True)
        tail = found.pop()  # it may go on, or its return be followed by a newline
        yield found
    yield tail.splitlines(keepends=True)


def lines_of(parts: Iterable[bytes], start: int = 0) -> Lines:
    """Yield the lines of a file from the byte `start` on, each with the byte after it."""
    for line in itertools.chain.from_iterable(line_lists(parts)):
        start += len(line)
        yield line, start


def decode(data: bytes) -> str:
    """Return text in UTF-8 or, where it is none, in Windows-1252; no byte is lost."""
    for encoding in ("utf-8", "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            pass
    return data.decode("latin-1")


def json_rows(lines: Lines) -> Rows:
    """Yield each line's object, or why it is none; skips empty lines."""
    return ((as_row(parse_json(line)), end) for line, end in lines if line.strip())


def parse_json(data: bytes) -> object:
    """Return what JSON says, a ValueError where it is none; half a character is U+FFFD."""
    try:
        found = json.loads(decode(data))
        return whole_characters(found) if b"\\u" in data else found
    except (ValueError, RecursionError) as error:
        return ValueError(str(error))


def whole_characters(value: object) -> object:
    """Return a value with U+FFFD for each half of a character, which no column can hold."""
    if isinstance(value, str):
        return HALVES.sub("\ufffd", value)
    if isinstance(value, list):
        return [whole_characters(x) for x in value]
    if isinstance(value, dict):
        return {whole_characters(name): whole_characters(x) for name, x in value.items()}
    return value


def as_row(value: object) -> ParsedRow:
    """Return an object as a row, anything else as an error."""
    if isinstance(value, ValueError):
        return {}, f"the line is not JSON: {value}"
    if not isinstance(value, dict):
        return {}, f"the line is no JSON object but {type(value).__name__}"
    return value, None


def json_list(url: str) -> list[ParsedRow]:
    """Return the rows of a file that is one JSON list.

    Raises:
        OptionError: it is none, or is larger than a file may be that is read at once.
    """
    parts = list(itertools.islice(chunks(url), MAX_JSON_CHUNKS + 1))
    if len(parts) > MAX_JSON_CHUNKS:
        size_bytes = MAX_JSON_CHUNKS * CHUNK_BYTES
        raise OptionError(f"it is a JSON list of over {size_bytes:,} bytes; write JSON lines")
    values = parse_json(b"".join(parts))
    if not isinstance(values, list):
        raise OptionError(f"it is no list of JSON objects: {values}")
    return [as_row(value) for value in values]


def csv_header(lines: Lines) -> tuple[tuple[str, ...], str, int]:
    """Return the names of a CSV file's columns, its delimiter, and the byte after them.

    Raises:
        OptionError: there are none, or one occurs twice.
    """
    text, end = "", 0
    for line, end in lines:  # noqa: B007  # the last one is returned
        text = text.lstrip() + decode(line)
        if text.strip() and not text.count('"') % 2:
            break
    else:
        text = ""  # a quote that nobody closes
    delimiter = max(DELIMITERS, key=re.sub(r'"[^"]*"', "", text).count)
    found = next(csv.reader([text], delimiter=delimiter), [])
    names = tuple(name.strip() for name in found)
    if not all(names) or not 0 < len(names) == len(set(names)):
        raise OptionError("it needs a first line with the names of its columns, all different")
    return names, delimiter, end


def csv_rows(lines: Lines, names: tuple[str, ...], delimiter: str) -> Rows:
    """Yield each row's fields, an empty one as null; skips empty lines.

    A line whose quotes do not fit is a row with an error, or read as well as it can be; the next
    line is a row again.
    """
    ahead: deque[Line] = deque()

    def next_line() -> Line | None:
        return ahead.popleft() if ahead else next(lines, None)

    while (first := next_line()) is not None:
        if not first[0].strip():
            continue
        taken = [first]
        fields = _fields(taken, next_line, delimiter)
        if fields is None or (len(fields) != len(names) and len(taken) > 1):
            ahead.extendleft(reversed(taken[1:]))  # they are rows of their own
            taken, fields = [first], _plain_fields(decode(first[0]), delimiter, len(names))
        row = {name: value or None for name, value in zip(names, fields, strict=False)}
        fault = f"the row has {len(fields)} fields, the first line {len(names)}"
        yield (row, None) if len(fields) == len(names) else ({}, fault), taken[-1][1]


def _fields(
    taken: list[Line], next_line: Callable[[], Line | None], delimiter: str
) -> list[str] | None:
    """Return a row's fields, taking further lines while a quote is open; None if none closes it."""

    def texts() -> Iterator[str]:
        yield decode(taken[0][0])
        while (line := next_line()) is not None:
            taken.append(line)
            yield decode(line[0])

    try:
        return next(csv.reader(texts(), delimiter=delimiter, strict=True))
    except (csv.Error, StopIteration):
        return None


def _plain_fields(line: str, delimiter: str, wanted: int) -> list[str]:
    """Return the fields of one line whose quotes do not fit, by the first dialect that can."""
    dialects: list[Any] = [ESCAPED] if '\\"' in line else []
    found: list[str] = []
    for dialect in [*dialects, *([] if line.count('"') % 2 else [{}]), BARE]:
        found = next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter, **dialect), [])
        if len(found) == wanted:
            break
    return found
