"""Looks at a file: where its rows lie, and what columns they have."""

import io
import itertools
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json
import pyarrow.orc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deployments.bulk.reading import lines, tars
from deployments.bulk.reading.files import (
    UTF8_MARK,
    chunks,
    open_input,
    open_unpacked,
    partitions,
)
from deployments.bulk.reading.types import TEXT, Fields, guess_type, merged, plain
from deployments.model.errors import OptionError

NEWLINE = ord("\n")
BLANKS = list(b" \t\n\r\v\f")
LINE_END = re.compile(rb"[\r\n]")
MAX_JSON_BYTES = 1024 * 1024 * 1024  # of a file that is one JSON value
UNREADABLE = (OSError, EOFError, pa.ArrowException, OptionError, tarfile.TarError, ValueError)


@dataclass(frozen=True)
class Part:
    """A file, or the bytes of it from `start` to before `stop`, where there is one."""

    url: str
    kind: str
    start: int
    stop: int | None
    size_bytes: int


@dataclass(frozen=True)
class Span:
    """A run of rows: the place of the first, and how many."""

    start: int
    num_rows: int


@dataclass
class Look:
    """What was found in a part.

    Attributes:
        spans: of at most the rows of a block.
        types: of its columns.
        fault: why some or all of its rows cannot be had; empty where they can.
        kind: what it is, where its name does not tell.
        header: names of the columns of a CSV file.
        delimiter: between its fields.
    """

    spans: list[Span] = field(default_factory=list)
    types: Fields = field(default_factory=dict)
    fault: str = ""
    kind: str = ""
    header: tuple[str, ...] = ()
    delimiter: str = ""


def look(part: Part, rows: int) -> Look:
    """Look at a part of the input; a file that cannot be read is one fault."""
    try:
        found = LOOKS[part.kind](part, rows)
    except UNREADABLE as error:
        return Look(fault=f"it cannot be read: {error}")
    if found.spans:
        given = dict.fromkeys(partitions(part.url), TEXT)
        found.types = {**given, **found.types}
    return found


def _counted(total: int, rows: int) -> list[Span]:
    return [Span(start, min(rows, total - start)) for start in range(0, total, rows)]


def _parquet(part: Part, rows: int) -> Look:
    with open_input(part.url) as source:
        file = pq.ParquetFile(source)
        return Look(_counted(file.metadata.num_rows, rows), _types(file.schema_arrow))


def _orc(part: Part, rows: int) -> Look:
    with open_input(part.url) as source:
        file = pyarrow.orc.ORCFile(source)
        return Look(_counted(file.nrows, rows), _types(file.schema))


def _feather(part: Part, rows: int) -> Look:
    with open_input(part.url) as source, pa.ipc.open_file(source) as file:
        total = sum(file.get_batch(i).num_rows for i in range(file.num_record_batches))
        return Look(_counted(total, rows), _types(file.schema))


def _types(schema: pa.Schema) -> Fields:
    return {column.name: plain(column.type) for column in schema}


def _tar(part: Part, rows: int) -> Look:
    with tars.open_tar(part.url) as file:
        samples, fault = tars.samples_of(file)
    found = {extension for sample in samples for extension in sample.members}
    types = dict.fromkeys((tars.KEY, tars.TEXT, tars.JSON, *sorted(found)), TEXT)
    if images := [x for x in found if x.rpartition(".")[2] in tars.IMAGE_ENDS]:
        types |= dict.fromkeys((tars.IMAGE, *images), pa.large_binary())
    return Look(_counted(len(samples), rows), types, fault)


def _json(part: Part, rows: int) -> Look:
    """A list of objects, or else lines of JSON, as Spark writes them."""
    with open_unpacked(part.url) as file:
        if not file.read(64).removeprefix(UTF8_MARK).lstrip().startswith(b"["):
            found = _jsonl(part, rows)
            found.kind = "jsonl"
            if found.spans and not found.types:
                raise OptionError("it is one JSON value; lists of objects and JSON lines are read")
            return found
    values = read_json(part.url)
    records = [row for row, error in map(lines.as_row, values) if not error]
    return Look(_counted(len(values), rows), _guess(records))


def read_json(url: str) -> list[Any]:
    """Return the values of a file that is one JSON list.

    Raises:
        OptionError: it is none, or is larger than a file may be that is read at once.
    """
    with open_unpacked(url) as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise OptionError(
            f"it is one JSON list of over {MAX_JSON_BYTES:,} bytes; write JSON lines instead"
        )
    values = lines.parse_json(data.removeprefix(UTF8_MARK))
    if not isinstance(values, list):
        raise OptionError(f"it is no list of JSON objects: {values}")
    return values


def _jsonl(part: Part, rows: int) -> Look:
    begins: list[int] = []  # of every block
    types: list[Fields] = []
    total = 0
    for data, place in _whole_lines(part):
        starts = _line_starts(data)
        types.append(_json_types(data, len(starts)))
        begins += (place + starts[-total % rows :: rows]).tolist()
        total += len(starts)
    spans = [Span(begin, min(rows, total - i * rows)) for i, begin in enumerate(begins)]
    return Look(spans, merged(types))


def _whole_lines(part: Part) -> Iterator[tuple[bytes, int]]:
    """Yield the lines that begin within a part, many at once, and the place of their first byte."""
    place = max(0, part.start - 1)
    tail, is_within = b"", not part.start  # a line that begins before is another part's
    for chunk in chunks(part.url, place):
        data = tail + chunk
        if not is_within:
            first = LINE_END.search(data)
            if first is None:
                place, tail = place + len(data), b""
                continue
            data, place, is_within = data[first.end() :], place + first.end(), True
        end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if part.stop is not None and place + len(data) >= part.stop:
            last = LINE_END.search(data, max(0, part.stop - 1 - place))
            if last is not None or place >= part.stop:
                yield data[: last.end() if last and place < part.stop else 0], place
                return
        tail, data = data[end:], data[:end]
        yield data, place
        place += len(data)
    yield tail, place


def _line_starts(data: bytes) -> NDArray[np.int64]:
    """Return where the lines begin that are not empty."""
    if b"\r" in data:
        ends = np.cumsum([len(line) for line in data.splitlines(keepends=True)], dtype=np.int64)
    else:
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == NEWLINE) + 1
        if data and not data.endswith(b"\n"):
            ends = np.append(ends, len(data))
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)[: len(ends)]
    first = np.frombuffer(data, np.uint8)[starts]
    is_text = np.ones(len(starts), bool)
    for i in np.flatnonzero(np.isin(first, BLANKS)):
        is_text[i] = bool(data[starts[i] : ends[i]].strip())
    return starts[is_text]


def _json_types(data: bytes, num_lines: int) -> Fields:
    """Return the types of lines: by Arrow's reader, or one by one where it cannot read them."""
    options = pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1)
    table = pa.table({})
    with suppress(pa.ArrowException):
        if num_lines and not lines.has_long_number(data):
            table = pyarrow.json.read_json(io.BytesIO(data), read_options=options)
    if table.num_rows != num_lines:  # it reads objects over several lines too
        found = lines.json_rows(lines.lines_of([data], 0))
        return _guess([record for (record, error), _ in found if not error])
    return {column.name: plain(_without_times(column.type)) for column in table.schema}


def _without_times(kind: pa.DataType) -> pa.DataType:
    """Return a type with text where Arrow's reader takes text for times: it stays as it was."""
    if pa.types.is_temporal(kind):
        return TEXT
    if pa.types.is_list(kind):
        return pa.list_(_without_times(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(x.name, _without_times(x.type)) for x in kind])
    return kind


def _guess(records: Sequence[Mapping[str, Any]]) -> Fields:
    names = dict.fromkeys(itertools.chain.from_iterable(records))
    return {name: guess_type([record.get(name) for record in records]) for name in names}


def _csv(part: Part, rows: int) -> Look:
    found = lines.lines_of(chunks(part.url, 0), 0)
    names, delimiter, start = lines.csv_header(found, part.url)
    ends: Iterable[int] = (end for _, end in lines.csv_rows(found, names, delimiter))
    spans, count, begin = [], 0, start
    for end in ends:
        count += 1
        if count == rows:
            spans.append(Span(begin, count))
            begin, count = end, 0
    if count:
        spans.append(Span(begin, count))
    return Look(spans, dict.fromkeys(names, TEXT), header=names, delimiter=delimiter)


LOOKS: dict[str, Callable[[Part, int], Look]] = {
    "parquet": _parquet,
    "orc": _orc,
    "feather": _feather,
    "tar": _tar,
    "json": _json,
    "jsonl": _jsonl,
    "csv": _csv,
}
