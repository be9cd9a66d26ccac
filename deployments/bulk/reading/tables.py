"""The first stage: reads the rows of a block into the columns that the job needs."""

import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deployments.bulk.columns import ERROR, IMAGE_EMBEDDING, TEXT_EMBEDDING, add_seconds
from deployments.bulk.reading import lines, tars
from deployments.bulk.reading.blocks import Plan, RowBlock
from deployments.bulk.reading.files import open_input, read_range
from deployments.model.errors import OptionError

ROW = "row"
PATH = "path"
BLOCK = "_block"
SAMPLE_ROWS = 1000  # of JSONL, from which the types of its columns are taken
BATCH_ROWS = 1024

Fields = Mapping[str, pa.DataType]


@dataclass(frozen=True)
class Layout:
    """Which columns are read.

    Attributes:
        text: column of the texts.
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
        types = column_types(plan)
        if text is None and image is None:
            text = "text" if "text" in types else None
            image = next((name for name in ("image", PATH) if name in types), None)
            image = None if plan.kind != "images" and image == PATH else image
        default = {"images": (PATH,), "tar": (tars.KEY,)}.get(plan.kind, ())
        kept = tuple(dict.fromkeys(kept or default))
        used = [name for name in (text, image, *kept) if name is not None]
        missing = [name for name in used if name not in types]
        if missing or (text is None and image is None):
            wanted = f"lacks {', '.join(missing)}" if missing else "has no column text or image"
            raise OptionError(f"the input {wanted}; its columns are {', '.join(types)}")
        reserved = [name for name in kept if name in (ERROR, TEXT_EMBEDDING, IMAGE_EMBEDDING)]
        if reserved or any(name.startswith("_") for name in kept):
            raise OptionError(f"a kept column may not be named {', '.join(reserved) or '_...'}")
        return cls(text, image, kept, {name: types[name] for name in used})


def column_types(plan: Plan) -> Fields:
    """Return the columns of the input and their types, from its first file."""
    first = plan.blocks[0]
    if plan.kind == "images":
        return {PATH: pa.string()}
    if plan.kind == "tar":
        content = {tars.IMAGE: pa.large_binary()}
        return {name: content.get(name, pa.large_string()) for name in tars.COLUMNS}
    if plan.kind == "csv":
        return dict.fromkeys(first.header, pa.large_string())
    if plan.kind == "parquet":
        with open_input(first.paths[0]) as file:
            return {field.name: field.type for field in pq.read_schema(file)}
    data = read_range(first.paths[0], first.start, first.stop)
    records = [record for record, error in islice(lines.read_jsonl(data), SAMPLE_ROWS) if not error]
    names = dict.fromkeys(name for record in records for name in record)
    return {name: guess_type([record.get(name) for record in records]) for name in names}


def guess_type(values: Sequence[object]) -> pa.DataType:
    """Return an Arrow type that holds all values, or text where none does."""
    try:
        found = pa.array(values).type
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        return pa.large_string()
    return pa.large_string() if found in (pa.null(), pa.string()) else found


class BlockReader:
    """Reads blocks, given in a column of Python objects, one after the other."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._parquet = ParquetRows()

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
        except (OSError, pa.ArrowException, OptionError, tarfile.TarError) as error:
            reason = f"{block.paths[0]} cannot be read: {error}"
            table = rows_to_table([({}, reason)] * block.num_rows, self._layout.types)
        numbers = range(block.first_row, block.first_row + block.num_rows)
        if ROW not in table.column_names:
            table = table.append_column(ROW, pa.array(numbers, pa.int64()))
        places = pa.array([block.number] * block.num_rows, pa.int64())
        return add_seconds(table.append_column(BLOCK, places), "read", start_s)

    def _read(self, block: RowBlock) -> pa.Table:
        path = block.paths[0]
        if block.kind == "images":
            return rows_to_table([({PATH: x}, None) for x in block.paths], self._layout.types)
        if block.kind == "parquet":
            names = list(self._layout.types)
            table = self._parquet.read(path, block.start, block.stop, names)
            fields = [pa.field(name, self._layout.types[name]) for name in names]
            table = table.select(names).cast(pa.schema(fields))
            return table.append_column(ERROR, pa.nulls(table.num_rows, pa.string()))
        data = read_range(path, block.start, block.stop)
        if block.kind == "tar":
            return rows_to_table([(x, None) for x in tars.read(data)], self._layout.types)
        rows = lines.read_csv(data, block.header) if block.kind == "csv" else lines.read_jsonl(data)
        return rows_to_table(rows, self._layout.types)


class ParquetRows:
    """Reads ranges of rows that follow each other without decoding what was read before."""

    def __init__(self) -> None:
        self._path = ""
        self._next_row = 0
        self._rest: pa.Table | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())

    def read(self, path: str, start: int, stop: int, names: list[str]) -> pa.Table:
        """Return rows from `start` to before `stop`.

        Raises:
            OSError: the file cannot be read.
            pa.ArrowException: it is broken.
        """
        if path != self._path or start < self._next_row:
            file = pq.ParquetFile(open_input(path))
            self._batches = file.iter_batches(BATCH_ROWS, columns=names)
            self._path, self._next_row, self._rest = path, 0, None
        self._take(start - self._next_row)
        return self._take(stop - start)

    def _take(self, count: int) -> pa.Table:
        """Remove and return the next rows."""
        parts = [] if self._rest is None else [self._rest]
        while sum(part.num_rows for part in parts) < count:
            try:
                parts.append(pa.Table.from_batches([next(self._batches)]))
            except (StopIteration, OSError, pa.ArrowException) as error:
                self._path = ""  # the next read starts anew
                raise OSError(f"fewer than {self._next_row + count} rows: {error}") from error
        if not parts:
            return pa.table({})
        table = pa.concat_tables(parts)
        self._next_row += count
        self._rest = table.slice(count)
        return table.slice(0, count)


def rows_to_table(rows: Sequence[tuple[Mapping[str, Any], str | None]], types: Fields) -> pa.Table:
    """Return parsed rows as columns; a value that its column cannot hold becomes an error."""
    errors = {index: error for index, (_, error) in enumerate(rows) if error}
    columns = {}
    for name, kind in types.items():
        values = [record.get(name) for record, _ in rows]
        columns[name] = to_column(name, values, kind, errors)
    columns[ERROR] = pa.array([errors.get(i) for i in range(len(rows))], pa.string())
    return pa.table(columns)


def to_column(name: str, values: list[Any], kind: pa.DataType, errors: dict[int, str]) -> pa.Array:
    """Return values as a column, null where one does not fit; adds the reason to `errors`."""
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
