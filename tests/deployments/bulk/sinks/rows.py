"""Rows with vectors, and outputs for them."""

import math
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from deployments.bulk.columns import vector_columns
from deployments.bulk.identity import Identity
from deployments.bulk.sinks.store import Store, StoreOutput

WIDTH = 16
IDENTITY = Identity("m", "abc", WIDTH, "float32", "", "native", "{}", "{}", "", False, "{}", "123")
KINDS = {
    "row": pa.int64(),
    "id": pa.string(),
    "n": pa.int64(),
    "more": pa.struct({"x": pa.float64()}),
}
UrlIn = Callable[[str], str]


def output_in(store: Store, part: pa.DataType | None = None, size: int = WIDTH) -> StoreOutput:
    kind = pa.list_(part or pa.float32(), size)
    return StoreOutput(store, KINDS, "id", {"text_embedding": kind})


def vectors(count: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def block(ids: list[str | None], first: int = 0, seed: int = 0) -> pa.Table:
    """Rows of a block; the last has an error in place of a vector."""
    rows = dict(enumerate(vectors(len(ids), seed)[:-1]))
    return pa.table(
        {
            "row": range(first, first + len(ids)),
            "id": pa.array(ids, pa.string()),
            "n": range(first, first + len(ids)),
            "more": [{"x": math.nan}] * len(ids),
            "text_embedding": vector_columns(rows, len(ids), WIDTH, "float32")[0],
            "error": pa.array([None] * (len(ids) - 1) + ["bad\0"], pa.string()),
        }
    )


def rows_of(store: Store) -> dict[object, dict[str, object]]:
    """Return the rows by id; fails where an id is there twice."""
    rows = store.rows("")
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}
