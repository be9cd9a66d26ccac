"""CSV as shops write it: a line whose quotes do not fit is one row, and the next a row again."""

import csv
import itertools
import re
from collections import deque
from collections.abc import Iterator
from typing import Any

from deployments.bulk.reading.files import Line, chunks, decode, lines_of, suffixes
from deployments.bulk.reading.plan import Fields, Look, Part, RowBlock
from deployments.bulk.reading.types import TEXT, ParsedRow
from deployments.model.errors import OptionError

DELIMITERS = ",;\t|"
FIELD_CHARACTERS = 16 * 1024 * 1024  # more between two quotes is a quote that nobody closed
HEADER_LINES = 1000  # that the names of columns may take
ESCAPED = {"doublequote": False, "escapechar": "\\"}  # quotes within quotes, as MySQL writes them
BARE = {"quoting": csv.QUOTE_NONE}  # quotes are characters like others

csv.field_size_limit(FIELD_CHARACTERS)


def look(part: Part, block_rows: int) -> Look:
    """Look at a file, from its beginning to its end."""
    lines = lines_of(chunks(part.url))
    names, delimiter, start = _header(lines, part.url)
    starts, total = [start], 0
    for total, (_, end) in enumerate(_rows(lines, names, delimiter), 1):
        if not total % block_rows:
            starts.append(end)
    return Look(total, starts[: -(-total // block_rows)], dict.fromkeys(filter(None, names), TEXT))


def rows(block: RowBlock, _names: Fields) -> Iterator[ParsedRow]:
    """Yield the rows of a file from a block on."""
    path = block.paths[0]
    names, delimiter, _ = _header(lines_of(chunks(path)), path)
    return (row for row, _ in _rows(lines_of(chunks(path, block.start)), names, delimiter))


def _header(lines: Iterator[Line], path: str) -> tuple[tuple[str, ...], str, int]:
    """Return the names of a file's columns, some may be empty, its delimiter, the byte after them.

    Between the fields of a .tsv are tabs, unless its first line has other delimiters alone.
    """
    text, end = "", 0
    for line, end in itertools.islice(lines, HEADER_LINES):  # noqa: B007  # the last is returned
        text += decode(line)
        if not text.strip():
            text = ""
        elif not text.count('"') % 2:
            break
    else:
        text = ""  # a quote that nobody closes
    bare = re.sub(r'"[^"]*"', "", text)
    delimiter = max(DELIMITERS, key=bare.count)
    if suffixes(path)[0] == ".tsv" and ("\t" in bare or delimiter not in bare):
        delimiter = "\t"
    found = next(csv.reader([text], delimiter=delimiter), [])
    names = tuple(name.strip() for name in found)
    named = [*filter(None, names)]
    if not 0 < len(named) == len(set(named)):
        raise OptionError("it needs a first line with the names of its columns, all different")
    return names, delimiter, end


def _rows(
    lines: Iterator[Line], names: tuple[str, ...], delimiter: str
) -> Iterator[tuple[ParsedRow, int]]:
    """Yield each row's fields, an empty one as null, and the byte after it; skips empty lines."""
    ahead: deque[Line] = deque()
    taken: list[Line] = []

    def take() -> Iterator[str]:
        """Yield the lines of a row: further ones while a quote is open."""
        while line := ahead.popleft() if ahead else next(lines, None):
            taken.append(line)
            yield decode(line[0])

    while True:
        taken.clear()
        try:
            fields = next(csv.reader(take(), delimiter=delimiter, strict=True), None)
        except csv.Error:
            fields = None
        if not taken:
            return
        if not taken[0][0].strip():
            continue
        if fields is None or (len(fields) != len(names) and len(taken) > 1):
            ahead.extendleft(reversed(taken[1:]))  # they are rows of their own
            del taken[1:]
            fields = _plain_fields(decode(taken[0][0]), delimiter, len(names))
        row = {name: value or None for name, value in zip(names, fields, strict=False)}
        fault = f"the row has {len(fields)} fields, the first line {len(names)}"
        yield (row, None) if len(fields) == len(names) else ({}, fault), taken[-1][1]


def _plain_fields(line: str, delimiter: str, wanted: int) -> list[str]:
    """Return the fields of one line whose quotes do not fit, by the first dialect that can."""
    dialects: list[dict[str, Any]] = [ESCAPED] if '\\"' in line else []
    found: list[str] = []
    for dialect in [*dialects, *([] if line.count('"') % 2 else [{}]), BARE]:
        found = next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter, **dialect), [])
        if len(found) == wanted:
            break
    return found
