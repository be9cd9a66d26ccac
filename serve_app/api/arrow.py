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


def stream(
    matrix: NDArray[Any],
    scales: NDArray[np.float32] | None,
    errors: Mapping[int, str],
    facts: bytes,
) -> bytes:
    """Return an Arrow IPC stream of a matrix [n, width], one row to an item.

    Columns: `index` int32, `embedding` as a list of fixed size, `int8_scale` where there are
    scales, `error` as text. The row of an item in `errors` is null. `facts` go into the schema.
    """
    import pyarrow as pa

    num_rows, width = matrix.shape
    failed = np.isin(np.arange(num_rows), list(errors))
    columns = {
        "index": pa.array(np.arange(num_rows, dtype=np.int32)),
        "embedding": pa.FixedSizeListArray.from_arrays(
            pa.array(matrix.reshape(-1)), width, mask=pa.array(failed)
        ),
    }
    if scales is not None:
        columns["int8_scale"] = pa.array(scales, mask=failed)
    columns["error"] = pa.array([errors.get(i) for i in range(num_rows)], pa.string())
    table = pa.table(columns).replace_schema_metadata({FACTS: facts})
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()
