"""The first stage: reads the rows of a block into the columns that the job needs."""

import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from deployments.bulk.columns import ERROR, INTERNAL, OUTPUT_NAMES, add_seconds
from deployments.bulk.reading import columnar, tars
from deployments.bulk.reading.files import partitions, shown, suffixes
from deployments.bulk.reading.formats import MODULES, UNREADABLE
from deployments.bulk.reading.plan import Fields, Plan, RowBlock
from deployments.bulk.reading.types import TEXT, ParsedRow, column_of, plain, to_column, value_of
from deployments.model.errors import OptionError

ROW = "row"
PATH = "path"
BLOCK = f"{INTERNAL}block"
SEEKABLE = ("jsonl", "csv")  # unless packed, a block is found without reading up to it


@dataclass(frozen=True)
class Layout:
    """Which columns are read, `meta.text` for a field of one, and which of them are kept."""

    text: str | None
    image: str | None
    kept: tuple[str, ...]
    types: Fields  # of all that are read

    @classmethod
    def choose(
        cls, plan: Plan, text: str | None, image: str | None, kept: Sequence[str]
    ) -> "Layout":
        """Find the columns in the input; `text` and `image` are taken where none is named.

        Raises:
            OptionError: a column that the input does not have, or a name that the output needs.
        """
        types = dict(plan.types)
        own = {"images": PATH, "tar": tars.KEY}.get(" ".join(plan.kinds))  # kept by default
        if plan.kinds == {"images"}:
            types[PATH] = TEXT
        if text is None and image is None:
            text = "text" if "text" in types else None
            image = PATH if own == PATH else "image" if "image" in types else None
        kept = tuple(dict.fromkeys(kept or filter(None, [own])))
        used = [name for name in (text, image, *kept) if name is not None]
        table = pa.schema(list(types.items())).empty_table()
        columns = {name: column_of(table, name) for name in used}
        missing = [name for name, column in columns.items() if column is None]
        if missing or not (text or image):
            wanted = f"lacks {', '.join(missing)}" if missing else "has no column text or image"
            raise OptionError(f"the input {wanted}; its columns are {', '.join(types)}")
        for name in kept:
            if name in OUTPUT_NAMES or name.startswith(INTERNAL):
                raise OptionError(f"a kept column may not be named {name}")
        found = {name: plain(x.type) for name, x in columns.items() if x is not None}
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
    """Reads blocks, one after the other; what follows a block stays open for one further down."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._next = ("", -1)  # the file, and the row of the input
        self._rest: Iterator[Any] = iter(())  # Any: rows, what reads them, or tables
        self._rows_each = 1  # of these tables

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
            self._next = (block.paths[0], block.first_row + block.num_rows)
        except UNREADABLE as error:
            self._next = ("", -1)
            reason = f"{shown(block.paths[0])} cannot be read: {error}"
            table = rows_to_table([({}, reason)] * block.num_rows, self._layout.types)
        numbers = range(block.first_row, block.first_row + block.num_rows)
        if ROW not in self._layout.kept:
            table = table.append_column(ROW, pa.array(numbers, pa.int64()))
        places = pa.array([block.number] * block.num_rows, pa.int64())
        return add_seconds(table.append_column(BLOCK, places), "read", start_s)

    def _read(self, block: RowBlock) -> pa.Table:
        types, path = self._layout.types, block.paths[0]
        if block.kind == "images":
            return rows_to_table([({PATH: address(x)}, None) for x in block.paths], types)
        given, module = partitions(path), MODULES[block.kind]
        skipped = block.first_row - self._next[1] if self._next[0] == path else -1
        if skipped < 0 or (skipped and block.kind in SEEKABLE and not suffixes(path)[1]):
            self._rest, self._rows_each, skipped = module.rows(block, types), block.num_rows, 0
        if module is columnar:
            tables = itertools.islice(self._rest, skipped // self._rows_each, None)
            return columns_to_table(next(tables, pa.table({})), given, types)
        found = itertools.islice(self._rest, skipped, skipped + block.num_rows)
        rows = (row() if callable(row) else row for row in found)
        return rows_to_table([({**given, **record}, error) for record, error in rows], types)


def address(path: str) -> str:
    """Return a path as text: one that is not UTF-8 as a URL."""
    return path if path == shown(path) else f"file://{quote(os.fsencode(path))}"


def columns_to_table(table: pa.Table, given: Mapping[str, str | None], types: Fields) -> pa.Table:
    """Return columns of a file as those of the layout."""
    found = {}
    for name in types:
        column = column_of(table, name)
        found[name] = [given.get(name)] * table.num_rows if column is None else column
    return to_table(found, table.num_rows, types, {})


def rows_to_table(rows: Sequence[ParsedRow], types: Fields) -> pa.Table:
    """Return parsed rows as columns."""
    found = {name: [value_of(record, name) for record, _ in rows] for name in types}
    errors = {index: error for index, (_, error) in enumerate(rows) if error}
    return to_table(found, len(rows), types, errors)


def to_table(
    found: Mapping[str, Any], num_rows: int, types: Fields, errors: dict[int, str]
) -> pa.Table:
    """Return columns with the errors of their rows; a value that does not fit is one."""
    columns = {name: to_column(name, found[name], kind, errors) for name, kind in types.items()}
    columns[ERROR] = pa.array([errors.get(i) for i in range(num_rows)], pa.string())
    return pa.table(columns)
