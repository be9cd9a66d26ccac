"""Rows of JSON and CSV files, with the bytes where each ends."""

import csv
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import orjson

from deployments.model.errors import OptionError

DELIMITERS = ",;\t|"
FIELD_CHARACTERS = 16 * 1024 * 1024  # more between two quotes is a quote that nobody closed
AS_ZEROS = bytes(ord("0") if chr(x).isdecimal() else 0 for x in range(128)) + bytes(128)
LONG_NUMBER = b"0" * 19  # digits, which orjson and Arrow read as a float
HALVES = re.compile("[\ud800-\udfff]")


class Quoted(csv.excel):
    """Quotes within quotes are doubled; text behind a quote is taken as it is."""


class Escaped(csv.excel):
    """Quotes within quotes have a backslash, as MySQL writes them."""

    doublequote = False
    escapechar = "\\"


class Bare(csv.excel):
    """Quotes are characters like others."""

    quoting = csv.QUOTE_NONE


csv.field_size_limit(FIELD_CHARACTERS)

Record = dict[str, Any]  # Any: whatever JSON holds
ParsedRow = tuple[Record, str | None]
Line = tuple[bytes, int]
"""A line with its end, and the byte after it."""
Lines = Iterator[Line]


def lines_of(parts: Iterable[bytes], start: int) -> Lines:
    """Yield the lines of a file; they end with a newline, a return, or both.

    Args:
        parts: of the file, from a byte on.
        start: that byte.
    """
    tail = b""
    for part in parts:
        found = (tail + part).splitlines(keepends=True)
        # The last line may go on, or its return be followed by a newline.
        tail = found.pop()
        for line in found:
            start += len(line)
            yield line, start
    for line in tail.splitlines(keepends=True):
        start += len(line)
        yield line, start


def decode(data: bytes) -> str:
    """Return text in UTF-8 or, where it is none, in Windows-1252; no byte is lost."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        pass
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def json_rows(lines: Lines) -> Iterator[tuple[ParsedRow, int]]:
    """Yield each line's object, or why it is none, and the byte after it; skips empty lines."""
    for line, end in lines:
        if line.strip():
            yield as_row(parse_json(line)), end


def parse_json(data: bytes) -> object:
    """Return what JSON says, a ValueError where it is none.

    NaN, Infinity and half an emoji are read too, and whole numbers of any length.
    """
    fault = ""
    if not has_long_number(data):
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError as error:
            fault = str(error)
    try:
        return whole_characters(json.loads(decode(data)))
    except (ValueError, RecursionError) as error:
        return ValueError(fault or str(error))


def has_long_number(data: bytes) -> bool:
    """Tell whether there may be a whole number of more than 64 bits; a fast look."""
    return LONG_NUMBER in data.translate(AS_ZEROS)


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


def csv_header(lines: Lines, url: str) -> tuple[tuple[str, ...], str, int]:
    """Return the names of a CSV file's columns, its delimiter, and the byte after them.

    Raises:
        OptionError: there are none, or one occurs twice.
    """
    buffer: list[str] = []
    for line, end in lines:
        buffer.append(decode(line))
        text = "".join(buffer)
        if not text.strip() or text.count('"') % 2:
            buffer = buffer if text.strip() else []
            continue
        bare = re.sub(r'"[^"]*"', "", text)
        delimiter = max(DELIMITERS, key=bare.count)
        names = tuple(name.strip() for name in next(csv.reader([text], delimiter=delimiter)))
        if len(set(names)) == len(names) and all(names):
            return names, delimiter, end
        break
    raise OptionError(f"{url!r} needs a first line with the names of its columns, all different")


def csv_rows(
    lines: Lines, names: tuple[str, ...], delimiter: str
) -> Iterator[tuple[ParsedRow, int]]:
    """Yield each row's fields, an empty one as null, and the byte after it; skips empty lines.

    A line whose quotes do not fit is a row with an error, or read as well as it can be; the next
    line is a row again.
    """
    ahead: deque[Line] = deque()

    def next_line() -> Line | None:
        return ahead.popleft() if ahead else next(lines, None)

    while (first := next_line()) is not None:
        taken = [first]
        if not first[0].strip():
            continue
        fields = _fields(taken, next_line, delimiter)
        if fields is None or (len(fields) != len(names) and len(taken) > 1):
            ahead.extendleft(reversed(taken[1:]))  # they are rows of their own
            taken, fields = [first], _plain_fields(decode(first[0]), delimiter, len(names))
        yield _as_row(fields, names), taken[-1][1]


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
    line = line.rstrip("\r\n")
    dialects: list[type[csv.excel]] = [Escaped] if '\\"' in line else []
    dialects += [Bare] if line.count('"') % 2 else [Quoted, Bare]
    found: list[str] = []
    for dialect in dialects:
        found = next(csv.reader([line], dialect, delimiter=delimiter), [])
        if len(found) == wanted:
            break
    return found


def _as_row(fields: list[str], names: tuple[str, ...]) -> ParsedRow:
    if len(fields) != len(names):
        return {}, f"the row has {len(fields)} fields, the first line {len(names)}"
    return {name: value or None for name, value in zip(names, fields, strict=True)}, None
