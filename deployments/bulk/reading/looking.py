"""Looks at a file: where its rows lie, and what columns they have."""

import bisect
import csv
import io
import itertools
import math
import tarfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.json

from deployments.bulk.reading import lines, tars
from deployments.bulk.reading.files import chunks, open_input, partitions
from deployments.bulk.reading.types import TEXT, Fields, guessed, merged, plain
from deployments.model.errors import OptionError

FORMATS = {
    "parquet": ds.ParquetFileFormat(),
    "orc": ds.OrcFileFormat(),
    "feather": ds.IpcFileFormat(),
}
COLUMNAR = (*FORMATS, "lance")
AS_ZEROS = bytes(ord("0") if chr(x).isdecimal() else 0 for x in range(128)) + bytes(128)
LONG_NUMBER = b"0" * 19  # digits, which Arrow reads as a float
VERSION = "#version="
UNREADABLE = (
    *(OSError, EOFError, ValueError, OptionError, pa.ArrowException),
    *(tarfile.TarError, csv.Error),
)


@dataclass(frozen=True)
class Part:
    """A file, or the bytes of it from `start` to before `stop`."""

    url: str
    kind: str
    size_bytes: int
    start: int = 0
    stop: float = math.inf


@dataclass
class Look:
    """What was found in a part.

    Attributes:
        spans: runs of at most the rows of a block: the place of the first, and how many.
        types: of its columns.
        fault: why some or all of its rows cannot be had; empty where they can.
        kind: what it is, where its name does not tell.
    """

    spans: list[tuple[int, int]] = field(default_factory=list)
    types: Fields = field(default_factory=dict)
    fault: str = ""
    kind: str = ""


def look(part: Part, rows: int) -> Look:
    """Look at a part of the input; a file that cannot be read is one fault."""
    try:
        found = LOOKS[part.kind](part, rows)
    except UNREADABLE as error:
        return Look(fault=f"it cannot be read: {error}")
    if found.spans:
        found.types = {**dict.fromkeys(partitions(part.url), TEXT), **found.types}
    return found


def _spans(starts: Iterable[int], total: int, rows: int) -> list[tuple[int, int]]:
    return [
        (start, min(rows, total - i * rows)) for i, start in enumerate(starts) if total > i * rows
    ]


def _counted(total: int, rows: int) -> list[tuple[int, int]]:
    return _spans(range(0, total, rows), total, rows)


def open_columns(kind: str, place: str) -> tuple[Any, pa.Schema]:
    """Open a file that has columns, or the version of a Lance table that `lance_version` named.

    Returns what counts and reads its rows, and the columns.
    """
    if kind == "lance":
        url, _, version = place.partition(VERSION)
        table = lance_table(url, int(version))
        return table, table.schema
    file = FORMATS[kind].make_fragment(open_input(place))
    return file, file.physical_schema


def lance_table(url: str, version: int | None = None) -> ds.Dataset:
    """Open a Lance table.

    Raises:
        OptionError: its library is not installed, or there is none.
    """
    try:
        import lance

        return lance.dataset(url, version)
    except ImportError:
        raise OptionError("Lance needs pylance; pip install 'jina-clip-serve[sinks]'") from None
    except (ValueError, OSError) as error:
        raise OptionError(f"{url!r} is no Lance table that can be read: {error}") from error


def lance_version(url: str) -> str:
    """Return the place of a Lance table's version of now: later ones are another input."""
    return f"{url}{VERSION}{lance_table(url).version}"


def _columns(part: Part, rows: int) -> Look:
    file, schema = open_columns(part.kind, part.url)
    types = {column.name: plain(column.type) for column in schema}
    return Look(_counted(file.count_rows(), rows), types)


def _tar(part: Part, rows: int) -> Look:
    with tars.open_tar(part.url) as file:
        samples, fault = tars.samples_of(file)
    found = sorted({extension for members in samples.values() for extension in members})
    types = dict.fromkeys((tars.KEY, tars.TEXT, tars.JSON, *found), TEXT)
    if images := list(filter(tars.is_image, found)):
        types |= dict.fromkeys((tars.IMAGE, *images), pa.large_binary())
    return Look(_counted(len(samples), rows), types, fault)


def _json(part: Part, rows: int) -> Look:
    """A list of objects, or else lines of JSON, as Spark writes them."""
    if next(chunks(part.url), b"").lstrip().startswith(b"["):
        found = lines.json_list(part.url)
        return Look(_counted(len(found), rows), guessed([row for row, error in found if not error]))
    look = _jsonl(part, rows)
    if look.spans and not look.types:
        raise OptionError("it is one JSON value; lists of objects and JSON lines are read")
    look.kind = "jsonl"
    return look


def _jsonl(part: Part, rows: int) -> Look:
    """Take the lines that begin in the part and are not empty."""
    place = max(0, part.start - 1)
    starts, types, total = [], [], 0
    for found in lines.line_lists(chunks(part.url, place)):
        begins = list(itertools.accumulate(map(len, found), initial=place))
        place = begins.pop()
        own = slice(*(bisect.bisect_left(begins, x) for x in (part.start, part.stop)))
        is_text = [not blank for blank in map(bytes.isspace, found[own])]
        starts += list(itertools.compress(begins[own], is_text))[-total % rows :: rows]
        types.append(_json_types(list(itertools.compress(found[own], is_text))))
        total += sum(is_text)
        if place >= part.stop:
            break
    return Look(_spans(starts, total, rows), merged(types))


def _json_types(batch: list[bytes]) -> Fields:
    """Return the types of lines: by Arrow's reader, or one by one where it cannot read them."""
    data = b"".join(batch)
    if batch and LONG_NUMBER not in data.translate(AS_ZEROS):
        with suppress(pa.ArrowException):
            options = pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1)
            table = pyarrow.json.read_json(io.BytesIO(data), read_options=options)
            if table.num_rows == len(batch):  # it reads objects over several lines too
                return {x.name: plain(_without_times(x.type)) for x in table.schema}
    return guessed(
        [row for row, error in map(lines.as_row, map(lines.parse_json, batch)) if not error]
    )


def _without_times(kind: pa.DataType) -> pa.DataType:
    """Return a type with text where Arrow's reader takes text for times: it stays as it was."""
    if pa.types.is_list(kind):
        return pa.list_(_without_times(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(x.name, _without_times(x.type)) for x in kind])
    return TEXT if pa.types.is_temporal(kind) else kind


def _csv(part: Part, rows: int) -> Look:
    found = lines.lines_of(chunks(part.url))
    names, delimiter, start = lines.csv_header(found)
    starts, total = [start], 0
    for total, (_, end) in enumerate(lines.csv_rows(found, names, delimiter), 1):
        if not total % rows:
            starts.append(end)
    return Look(_spans(starts, total, rows), dict.fromkeys(names, TEXT))


LOOKS: dict[str, Callable[[Part, int], Look]] = {
    **dict.fromkeys(COLUMNAR, _columns),
    "tar": _tar,
    "json": _json,
    "jsonl": _jsonl,
    "csv": _csv,
}
