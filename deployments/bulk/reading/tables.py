"""The first stage: reads the rows of a block into the columns that the job needs."""

import itertools
import os
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import quote

import pyarrow as pa
import pyarrow.orc

from deployments.bulk.columns import ERROR, INTERNAL, OUTPUT_NAMES, add_seconds
from deployments.bulk.reading import lines, tars
from deployments.bulk.reading.batches import BATCHES, Batches, column_of
from deployments.bulk.reading.blocks import Plan, RowBlock
from deployments.bulk.reading.files import chunks, partitions, shown
from deployments.bulk.reading.looking import UNREADABLE, read_json
from deployments.bulk.reading.types import TEXT, Fields, as_text, nested, plain, value_of
from deployments.model.errors import OptionError

ROW = "row"
PATH = "path"
BLOCK = f"{INTERNAL}block"

Kept = tuple[str, int, Iterator[Any]]  # Any: rows or batches
"""What a reader has open: the file, the place of the next row, and what follows."""


@dataclass(frozen=True)
class Layout:
    """Which columns are read.

    Attributes:
        text: column of the texts; a field of a column as `meta.text`.
        image: column of the images.
        kept: columns that the output has too.
        types: Arrow type of each column that is read.
    """

    text: str | None
    image: str | None
    kept: tuple[str, ...]
    types: Fields

    @classmethod
    def choose(
        cls, plan: Plan, text: str | None, image: str | None, kept: Sequence[str]
    ) -> "Layout":
        """Find the columns in the input; `text` and `image` are taken where none is named.

        Raises:
            OptionError: a column that the input does not have, or a name that the output needs.
        """
        types = dict(plan.types)
        if plan.kinds == {"images"}:
            types[PATH] = TEXT
        if text is None and image is None:
            text = "text" if "text" in types else None
            image = PATH if plan.kinds == {"images"} else "image" if "image" in types else None
        default = ((PATH,) if plan.kinds == {"images"} else ()) or (
            (tars.KEY,) if plan.kinds == {"tar"} else ()
        )
        kept = tuple(dict.fromkeys(kept or default))
        used = [name for name in (text, image, *kept) if name is not None]
        found = {name: kind for name in used if (kind := nested(types, name)) is not None}
        missing = [name for name in used if name not in found]
        if missing or (text is None and image is None):
            wanted = f"lacks {', '.join(missing)}" if missing else "has no column text or image"
            raise OptionError(f"the input {wanted}; its columns are {', '.join(types)}")
        for name in kept:
            if name in OUTPUT_NAMES or name.startswith(INTERNAL):
                raise OptionError(f"a kept column may not be named {name}")
        if image is not None:
            require_image(image, found[image])
        return cls(text, image, kept, found)


def require_image(name: str, kind: pa.DataType) -> None:
    """Refuse a column that holds no image in each row.

    Raises:
        OptionError: it cannot; says what it is.
    """
    names = {field.name for field in kind} if pa.types.is_struct(kind) else set()
    if pa.types.is_nested(kind) and not names & {"bytes", "path"}:
        raise OptionError(
            f"the column {name} is {kind}; an image is bytes, text (path, URL, base64) or a struct "
            "with bytes and path, one in each row"
        )


class BlockReader:
    """Reads blocks, given in a column of Python objects, one after the other.

    What follows a block stays open, so that blocks in order read each file once.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._kept: Kept = ("", 0, iter(()))
        self._tar: tuple[str, BinaryIO, list[tars.Sample]] | None = None
        self._json: tuple[str, list[Any]] = ("", [])

    def read(self, block: RowBlock) -> pa.Table:
        """Return the block's rows with `row`, `error` and the columns of the layout.

        A row that cannot be read has an error in place of its values; if the file cannot be read,
        all have.
        """
        start_s = time.perf_counter()
        try:
            table = self._read(block)
            if table.num_rows != block.num_rows:
                raise OptionError(f"{table.num_rows} rows in place of {block.num_rows}")
        except UNREADABLE as error:
            self._kept = ("", 0, iter(()))
            reason = f"{shown(block.paths[0])} cannot be read: {error}"
            table = rows_to_table([({}, reason)] * block.num_rows, self._layout.types)
        numbers = range(block.first_row, block.first_row + block.num_rows)
        if ROW not in self._layout.kept:
            table = table.append_column(ROW, pa.array(numbers, pa.int64()))
        places = pa.array([block.number] * block.num_rows, pa.int64())
        return add_seconds(table.append_column(BLOCK, places), "read", start_s)

    def _read(self, block: RowBlock) -> pa.Table:
        path, types = block.paths[0], self._layout.types
        if block.kind == "images":
            return rows_to_table([({PATH: address(x)}, None) for x in block.paths], types)
        if block.kind in BATCHES:
            return self._columns(block, BATCHES[block.kind])
        rows: list[lines.ParsedRow]
        if block.kind == "tar":
            rows = self._samples(block)
        elif block.kind == "json":
            if self._json[0] != path:
                self._json = (path, read_json(path))
            values = self._json[1][block.start : block.start + block.num_rows]
            rows = [lines.as_row(value) for value in values]
        else:
            rows = self._lines(block)
        if given := partitions(path):
            rows = [({**given, **record}, error) for record, error in rows]
        return rows_to_table(rows, types)

    def _samples(self, block: RowBlock) -> list[lines.ParsedRow]:
        path = block.paths[0]
        if self._tar is None or self._tar[0] != path:
            if self._tar is not None:
                self._tar[1].close()
            file = tars.open_tar(path)
            weakref.finalize(self, file.close)
            self._tar = (path, file, tars.samples_of(file)[0])
        _, file, samples = self._tar
        wanted = samples[block.start : block.start + block.num_rows]
        return [tars.read(file, sample, self._layout.types) for sample in wanted]

    def _lines(self, block: RowBlock) -> list[lines.ParsedRow]:
        path = block.paths[0]
        if self._kept[:2] != (path, block.start):
            found = lines.lines_of(chunks(path, block.start), block.start)
            rows = (
                lines.csv_rows(found, block.header, block.delimiter)
                if block.kind == "csv"
                else lines.json_rows(found)
            )
            self._kept = (path, block.start, rows)
        taken = list(itertools.islice(self._kept[2], block.num_rows))
        self._kept = (path, _next_start(taken), self._kept[2])
        return [row for row, _ in taken]

    def _columns(self, block: RowBlock, batches: "Batches") -> pa.Table:
        """Return rows of a file that has columns; what the layout wants of each is cast."""
        path, types, stop = block.paths[0], self._layout.types, block.start + block.num_rows
        if self._kept[:2] != (path, block.start):
            first, found = batches(path, block.start, set(types))
            self._kept = (path, first, found)
            self._take(block.start - first)
        table = self._take(stop - block.start)
        given = partitions(path)
        errors: dict[int, str] = {}
        columns = {
            name: cast(name, column_of(table, name, given), kind, errors)
            for name, kind in types.items()
        }
        columns[ERROR] = pa.array([errors.get(i) for i in range(table.num_rows)], pa.string())
        return pa.table(columns)

    def _take(self, count: int) -> pa.Table:
        """Remove and return the next rows; raises OSError where there are fewer."""
        path, position, batches = self._kept
        parts: list[pa.RecordBatch] = []
        left = count
        while left > 0:
            batch = next(batches, None)
            if batch is None:
                raise OSError(f"fewer than {position + count} rows")
            parts.append(batch.slice(0, left))
            if batch.num_rows > left:
                batches = itertools.chain([batch.slice(left)], batches)
            left -= parts[-1].num_rows
        self._kept = (path, position + count, batches)
        return pa.Table.from_batches(parts) if parts else pa.table({})


def address(path: str) -> str:
    """Return a path as text: one that is not UTF-8 as a URL."""
    return path if path == shown(path) else f"file://{quote(os.fsencode(path))}"


def _next_start(taken: Sequence[tuple[lines.ParsedRow, int]]) -> int:
    return taken[-1][1] if taken else -1


def cast(
    name: str, column: pa.ChunkedArray, kind: pa.DataType, errors: dict[int, str]
) -> pa.Array | pa.ChunkedArray:
    """Return a column as another type; a value that does not fit is null, and an error."""
    if plain(column.type) == kind and not pa.types.is_nested(kind):
        return column.cast(kind)
    if kind == TEXT and not pa.types.is_null(column.type):
        return pa.array([as_text(value) for value in column.to_pylist()], TEXT)
    try:
        return column.cast(kind)
    except pa.ArrowException:
        return to_column(name, column.to_pylist(), kind, errors)


def rows_to_table(rows: Sequence[tuple[Mapping[str, Any], str | None]], types: Fields) -> pa.Table:
    """Return parsed rows as columns; a value that its column cannot hold becomes an error."""
    errors = {index: error for index, (_, error) in enumerate(rows) if error}
    columns = {}
    for name, kind in types.items():
        values = [value_of(record, name) for record, _ in rows]
        columns[name] = to_column(name, values, kind, errors)
    columns[ERROR] = pa.array([errors.get(i) for i in range(len(rows))], pa.string())
    return pa.table(columns)


def to_column(name: str, values: list[Any], kind: pa.DataType, errors: dict[int, str]) -> pa.Array:
    """Return values as a column, null where one does not fit; adds the reason to `errors`."""
    for index, value in enumerate(values):
        if isinstance(value, tars.Several):
            values[index], errors[index] = None, f"{name}: {value}"
    if kind == TEXT:
        values = [as_text(value) for value in values]
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        pass
    for index, value in enumerate(values):
        try:
            pa.array([value], kind)
        except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
            values[index] = None
            errors[index] = f"{name}: the value is not {kind}: {error}"
    return pa.array(values, kind)
