"""Arrow streams: the one place that imports pyarrow, which is optional."""

import importlib.util
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.errors import RequestError

MEDIA_TYPE = "application/vnd.apache.arrow.stream"
FACTS = b"jina-clip-serve"


def require() -> None:
    """Look for pyarrow.

    Raises:
        RequestError: this server has none.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise RequestError(
            "this server cannot write Arrow: its operator has to install "
            "'jina-clip-serve[arrow]'; accept application/x-npy or JSON"
        )


def stream(named: Mapping[str, NDArray[Any]], errors: Mapping[int, str], facts: bytes) -> bytes:
    """Return an Arrow IPC stream of arrays [n, width] or [n], one row to an item.

    Columns: `index` int32, one for each array, with lists of fixed size where it has a width, and
    `error` as text. The row of an item in `errors` is null. `facts` go into the schema.
    """
    import pyarrow as pa

    num_rows = len(next(iter(named.values())))
    failed = np.isin(np.arange(num_rows), list(errors))

    def column(values: NDArray[Any]) -> object:
        if values.ndim == 1:
            return pa.array(values, mask=failed)
        flat, width = pa.array(values.reshape(-1)), values.shape[1]
        return pa.FixedSizeListArray.from_arrays(flat, width, mask=pa.array(failed))

    columns = {"index": pa.array(np.arange(num_rows, dtype=np.int32))}
    columns |= {name: column(values) for name, values in named.items()}
    columns["error"] = pa.array([errors.get(i) for i in range(num_rows)], pa.string())
    table = pa.table(columns).replace_schema_metadata({FACTS: facts})
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()
