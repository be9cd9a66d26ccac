"""Files whose columns have types (Parquet, ORC, Feather), and versions of a Lance table."""

import bisect
import itertools
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from deployments.bulk.reading.files import open_input
from deployments.bulk.reading.plan import Fields, Look, Part, RowBlock
from deployments.bulk.reading.types import plain
from deployments.model.errors import OptionError

FORMATS = {
    "parquet": ds.ParquetFileFormat(),
    "orc": ds.OrcFileFormat(),
    "feather": ds.IpcFileFormat(),
}
VERSION = "#version="


def look(part: Part, block_rows: int) -> Look:
    """Look at the footer of a file, or at a table's version."""
    file, schema = _open(part.kind, part.url)
    num_rows = file.count_rows()
    types = {column.name: plain(column.type) for column in schema}
    return Look(num_rows, range(0, num_rows, block_rows), types)


def rows(block: RowBlock, names: Fields) -> Iterator[pa.Table]:
    """Yield tables of as many rows as a block has, from it on, of the columns that names need."""
    file, schema = _open(block.kind, block.paths[0])
    wanted = [x for x in schema.names if any(f"{name}.".startswith(f"{x}.") for name in names)]
    columns = wanted or schema.names[:1]  # to count
    held: list[pa.Table] = []
    for table in _tables(file, block, columns):
        held.append(table)
        while sum(x.num_rows for x in held) >= block.num_rows:
            whole = pa.concat_tables(held)
            yield whole.slice(0, block.num_rows)
            held = [whole.slice(block.num_rows)]
    if held:
        yield pa.concat_tables(held)


def lance_version(url: str) -> str:
    """Return the place of a Lance table's version of now: later ones are another input."""
    return f"{url}{VERSION}{_lance(url).version}"


def _open(kind: str, place: str) -> tuple[ds.Fragment, pa.Schema]:
    """Return what counts and reads the rows of a file or a version, and its columns."""
    if kind == "lance":
        url, _, version = place.partition(VERSION)
        table = _lance(url, int(version))
        return table, table.schema
    file = FORMATS[kind].make_fragment(open_input(place))
    return file, file.physical_schema


def _lance(url: str, version: int | None = None) -> ds.Dataset:
    try:
        import lance

        return lance.dataset(url, version)
    except ImportError:
        raise OptionError("Lance needs pylance; pip install 'jina-clip-serve[sinks]'") from None
    except (ValueError, OSError) as error:
        raise OptionError(f"{url!r} is no Lance table that can be read: {error}") from error


def _tables(file: ds.Fragment, block: RowBlock, columns: list[str]) -> Iterator[pa.Table]:
    """Yield the rows of a file from a block on."""
    skipped, most = block.start, block.num_rows
    if block.kind == "lance":
        batches, skipped = file.to_batches(columns, offset=skipped, batch_size=most), 0
    elif block.kind == "parquet":  # row groups are skipped, and not held as a whole
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        first = bisect.bisect_right(list(itertools.accumulate(sizes)), skipped)
        skipped -= sum(sizes[:first])
        reader = pq.ParquetFile(open_input(block.paths[0]), metadata=file.metadata)
        batches = reader.iter_batches(most, list(range(first, len(sizes))), columns)
    else:
        batches = file.to_batches(columns=columns, batch_readahead=1)
    for batch in batches:
        if skipped < batch.num_rows:
            yield pa.Table.from_batches([batch.slice(skipped)])
        skipped = max(0, skipped - batch.num_rows)
