"""JSON: a list of objects, or lines, as `.jsonl` has them and Spark writes under `.json`."""

import itertools
import json
import re
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.json
from numpy.typing import NDArray

from deployments.bulk.reading.files import CHUNK_BYTES, chunks, decode, lines_of, whole_lines
from deployments.bulk.reading.plan import Fields, Look, Part, RowBlock
from deployments.bulk.reading.types import TEXT, ParsedRow, guessed, merged, plain
from deployments.model.errors import OptionError

MAX_LIST_CHUNKS = 256  # 1 GiB, of a file that is one list
HALVES = re.compile("[\ud800-\udfff]")
AS_ZEROS = bytes(ord("0") if chr(x).isdecimal() else 0 for x in range(128)) + bytes(128)
LONG_NUMBER = b"0" * 19  # digits, which Arrow reads as a float

Places = NDArray[np.int64]


def rows(block: RowBlock, _names: Fields) -> Iterator[ParsedRow]:
    """Yield the rows of a file from a block on."""
    path, start = block.paths[0], block.start
    if block.kind == "json" and _is_list(path):
        return iter(_list(path)[start:])
    return (_row(_parsed(line)) for line, _ in lines_of(chunks(path, start)) if line.strip())


def look(part: Part, block_rows: int) -> Look:
    """Look at a file, or at the lines that begin in a part of it and are not empty."""
    if part.kind == "json" and _is_list(part.url):
        values = _list(part.url)
        types = guessed([row for row, error in values if not error])
        return Look(len(values), range(0, len(values), block_rows), types)
    total, place = 0, max(0, part.start - 1)
    starts: list[int] = []
    parts: list[Fields] = []
    for data in whole_lines(chunks(part.url, place)):
        begins, ends = _places(data)
        own = (place + begins >= part.start) & (place + begins < part.stop)
        begins, ends = begins[own], ends[own]
        if len(begins):
            starts += (place + begins[-total % block_rows :: block_rows]).tolist()
            parts.append(_types(data[begins[0] : ends[-1]], len(begins)))
            total += len(begins)
        place += len(data)
        if place >= part.stop:
            break
    types = merged(parts)
    if total and not types and part.kind == "json":
        raise OptionError("it is one JSON value; lists of objects and JSON lines are read")
    return Look(total, starts, types)


def _places(data: bytes) -> tuple[Places, Places]:
    """Return where the lines that are not empty begin and end."""
    codes = np.frombuffer(data, np.uint8)
    ends = np.append(np.flatnonzero((codes == ord("\n")) | (codes == ord("\r"))) + 1, len(codes))
    begins = np.append(0, ends[:-1])
    is_text = begins < len(codes)
    is_text[is_text] = codes[begins[is_text]] > ord(" ")
    for i in np.flatnonzero(~is_text & (ends - begins > 1)).tolist():
        is_text[i] = not data[begins[i] : ends[i]].isspace()
    return begins[is_text], ends[is_text]


def _types(data: bytes, num_lines: int) -> Fields:
    """Return the types of lines: by Arrow's reader, or one by one where it cannot read them."""
    # A null before the first object ends the process (Arrow 26.0.1).
    if LONG_NUMBER not in data.translate(AS_ZEROS) and not data.lstrip().startswith(b"null"):
        with suppress(pa.ArrowException, RecursionError):
            options = pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1)
            table = pyarrow.json.read_json(pa.BufferReader(data), read_options=options)
            if table.num_rows == num_lines:  # it reads objects over several lines too
                return {x.name: plain(_without_times(x.type)) for x in table.schema}
    parsed = [_row(_parsed(line)) for line in data.splitlines() if line.strip()]
    return guessed([row for row, error in parsed if not error])


def _without_times(kind: pa.DataType) -> pa.DataType:
    """Return a type with text where Arrow's reader takes text for times: it stays as it was."""
    if pa.types.is_list(kind):
        return pa.list_(_without_times(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(x.name, _without_times(x.type)) for x in kind])
    return TEXT if pa.types.is_temporal(kind) else kind


def _is_list(path: str) -> bool:
    return next(chunks(path), b"").lstrip().startswith(b"[")


def _list(path: str) -> list[ParsedRow]:
    parts = list(itertools.islice(chunks(path), MAX_LIST_CHUNKS + 1))
    if len(parts) > MAX_LIST_CHUNKS:
        size_bytes = MAX_LIST_CHUNKS * CHUNK_BYTES
        raise OptionError(f"it is a JSON list of over {size_bytes:,} bytes; write JSON lines")
    values = _parsed(b"".join(parts))
    if not isinstance(values, list):
        raise OptionError(f"it is no list of JSON objects: {values}")
    return [_row(value) for value in values]


def _parsed(data: bytes) -> object:
    """Return what JSON says, a ValueError where it is none; half a character is U+FFFD."""
    try:
        found = json.loads(decode(data).removeprefix("\ufeff"))
        if b"\\u" in data:
            found = json.loads(HALVES.sub("\ufffd", json.dumps(found, ensure_ascii=False)))
    except (ValueError, RecursionError) as error:
        return ValueError(str(error))
    return found


def _row(value: object) -> ParsedRow:
    if isinstance(value, ValueError):
        return {}, f"the line is not JSON: {value}"
    if not isinstance(value, dict):
        return {}, f"the line is no JSON object but {type(value).__name__}"
    return value, None
