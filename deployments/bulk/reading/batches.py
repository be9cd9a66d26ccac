"""Batches of rows of files that have columns: Parquet, ORC, Feather."""

from collections.abc import Callable, Iterator, Mapping

import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet as pq

from deployments.bulk.reading.files import open_input
from deployments.bulk.reading.types import TEXT

BATCH_ROWS = 1024

Batches = Callable[[str, int, set[str]], tuple[int, Iterator[pa.RecordBatch]]]


def _parquet(path: str, start: int, names: set[str]) -> tuple[int, Iterator[pa.RecordBatch]]:
    """Open a file at the row group that has a row; return the group's first row, and batches."""
    file = pq.ParquetFile(open_input(path))
    groups, first = file.num_row_groups, 0
    for group in range(groups):
        rows = file.metadata.row_group(group).num_rows
        if start < first + rows:
            break
        first += rows
    columns = _columns(file.schema_arrow, names)
    rest = list(range(group, groups))
    return first, file.iter_batches(BATCH_ROWS, row_groups=rest, columns=columns)


def _orc(path: str, start: int, names: set[str]) -> tuple[int, Iterator[pa.RecordBatch]]:
    file = pyarrow.orc.ORCFile(open_input(path))
    columns = _columns(file.schema, names)
    return 0, (file.read_stripe(i, columns) for i in range(file.nstripes))


def _feather(path: str, start: int, names: set[str]) -> tuple[int, Iterator[pa.RecordBatch]]:
    file = pa.ipc.open_file(open_input(path))
    columns = _columns(file.schema, names)
    return 0, (file.get_batch(i).select(columns) for i in range(file.num_record_batches))


BATCHES: dict[str, Batches] = {"parquet": _parquet, "orc": _orc, "feather": _feather}


def _columns(schema: pa.Schema, names: set[str]) -> list[str]:
    """Return the columns of a file that names are of, or are fields of; one at least, to count."""
    columns = {name if name in schema.names else name.partition(".")[0] for name in names}
    return [name for name in schema.names if name in columns] or schema.names[:1]


def column_of(table: pa.Table, name: str, given: Mapping[str, str]) -> pa.ChunkedArray:
    """Return a column, or a field of one; nulls or what the path gives where there is none."""
    column, _, rest = name.partition(".")
    if name in table.column_names:
        return table[name]
    if rest and column in table.column_names and pa.types.is_struct(table[column].type):
        fields = pa.Table.from_struct_array(table[column])
        return column_of(fields, rest, {})
    return pa.chunked_array([pa.array([given.get(name)] * table.num_rows, TEXT)])
