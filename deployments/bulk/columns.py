"""Arrow columns of the pipeline: internal ones, errors, and vectors as fixed-size lists.

Internal columns have a prefix and are dropped at the end: token ids or pixels on their way to a
tower, and the seconds that each stage spent, shared out over the rows, so that they add up however
rows are split into blocks.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deployments.bulk.options import Precision
from deployments.model.output import Row, Rows, to_int8, to_ubinary
from deployments.model.tokenizer import TokenIds

ERROR = "error"
TEXT_EMBEDDING = "text_embedding"
IMAGE_EMBEDDING = "image_embedding"
SCALES = {TEXT_EMBEDDING: "text_scale", IMAGE_EMBEDDING: "image_scale"}
"""What the int8 row times is the vector, by the column of the vectors."""
VECTOR_COLUMNS = (TEXT_EMBEDDING, IMAGE_EMBEDDING, *SCALES.values())
OUTPUT_NAMES = {ERROR, *VECTOR_COLUMNS}
INTERNAL = "__bulk_"
TOKEN_IDS = f"{INTERNAL}token_ids"
PIXELS = f"{INTERNAL}pixels"  # decoded, as plain bytes
ENCODED = f"{INTERNAL}encoded"  # for the tower to decode
DIGEST = f"{INTERNAL}digest"  # of what a row embeds
STAGES = ("read", "prepare", "text", "vision")

TYPES: dict[Precision, pa.DataType] = {
    "float32": pa.float32(),
    "float16": pa.float16(),
    "int8": pa.int8(),
    "binary": pa.uint8(),
}
Batch: TypeAlias = (
    pa.Table | Mapping[str, Any]
)  # Any: what Ray Data or a person passes, columns of any type


def as_table(batch: Batch) -> pa.Table:
    """Return a batch of Ray Data in its Arrow or numpy format as a table."""
    if isinstance(batch, pa.Table):
        return batch
    return pa.table({name: pa.array(list(values)) for name, values in batch.items()})


def put(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    """Add a column, or replace the one of that name."""
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, column)
    return table.append_column(name, column)


def add_errors(table: pa.Table, errors: Mapping[int, str]) -> pa.Table:
    """Add reasons to rows of the error column, after those that are there."""
    old = table[ERROR].to_pylist() if ERROR in table.column_names else [None] * table.num_rows
    for index, reason in errors.items():
        old[index] = f"{old[index]}; {reason}" if old[index] else reason
    return put(table, ERROR, pa.array(old, pa.string()))


def add_seconds(table: pa.Table, stage: str, start_s: float) -> pa.Table:
    """Note the time since `start_s` as this stage's."""
    share = (time.perf_counter() - start_s) / max(1, table.num_rows)
    return put(table, seconds_of(stage), pa.array(np.full(table.num_rows, share)))


def seconds_of(stage: str) -> str:
    """Return the column with the seconds of a stage."""
    return f"{INTERNAL}{stage}_s"


def drop_internal(table: pa.Table) -> pa.Table:
    """Return the table without the columns that only stages need."""
    return table.drop_columns([name for name in table.column_names if name.startswith(INTERNAL)])


def token_column(texts: Sequence[TokenIds | None]) -> pa.Array:
    """Return int32 lists; null where there is no text."""
    return pa.array(texts, pa.large_list(pa.int32()))


def token_rows(column: pa.ChunkedArray) -> list[TokenIds | None]:
    """Return the token ids of each row; what `token_column` was made of."""
    rows: list[TokenIds | None] = []
    for chunk in column.chunks:
        offsets, values = chunk.offsets.to_numpy(), chunk.values.to_numpy()
        for index, absent in enumerate(chunk.is_null().to_pylist()):
            rows.append(None if absent else values[offsets[index] : offsets[index + 1]])
    return rows


def vector_columns(
    rows: Mapping[int, Row], count: int, width: int, precision: Precision
) -> tuple[pa.Array, pa.Array | None]:
    """Return fixed-size lists, null in the rows that have no vector, and the scales of int8 rows.

    Args:
        rows: float32 [width], of length 1 each, by row.
        count: rows of the table.
        width: components of a vector.
        precision: how they are stored: int8 scales each row so that its largest component is 127 or
            -127; times its scale it is the vector again, off by half a scale at most. binary keeps
            the signs, 1 for positive, 8 to a byte, the first highest.
    """
    matrix = np.zeros((count, width), dtype=np.float32)
    places = list(rows)
    if places:
        matrix[places] = np.stack([rows[index] for index in places])
    encoded, scales = encode(matrix, precision)
    mask = np.ones(count, dtype=bool)
    mask[places] = False
    values = pa.array(encoded.reshape(-1), TYPES[precision])
    lists = pa.FixedSizeListArray.from_arrays(values, encoded.shape[1], mask=pa.array(mask))
    return lists, None if scales is None else pa.array(scales, pa.float32(), mask=mask)


def encode(rows: Rows, precision: Precision) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Return rows [n, width] with fewer bits, and the scale [n] of each where there is one."""
    match precision:
        case "float32":
            return rows, None
        case "float16":
            return rows.astype(np.float16), None
        case "int8":
            return to_int8(rows)
        case "binary":
            return to_ubinary(rows), None
