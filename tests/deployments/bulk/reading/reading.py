"""Cuts an input into blocks and reads them all, as a job does."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from deployments.bulk.columns import INTERNAL
from deployments.bulk.reading.blocks import Plan, cut_input
from deployments.bulk.reading.tables import BlockReader, Layout


def read_plan(plan: Plan, **columns: Any) -> pa.Table:
    """Read every block by one reader; checks that each has the rows that were counted."""
    layout = Layout.choose(plan, **{"text": None, "image": None, "kept": ()} | columns)
    reader = BlockReader(layout)
    tables = [reader.read(block) for block in plan.blocks]
    assert [table.num_rows for table in tables] == [block.num_rows for block in plan.blocks]
    # A reader that gets only this block finds the same: another worker, or a resumed job.
    for block, table in zip(plan.blocks, tables, strict=True):
        names = [name for name in table.column_names if not name.startswith(INTERNAL)]
        alone = BlockReader(layout).read(block).select(names)
        assert str(alone.to_pylist()) == str(table.select(names).to_pylist())  # NaN is not NaN
    return pa.concat_tables(tables)


def read_all(url: Path | str, block_rows: int = 3, **columns: Any) -> pa.Table:
    """Cut and read an input."""
    plan = cut_input(str(url), block_rows)
    assert max(block.num_rows for block in plan.blocks) <= block_rows
    return read_plan(plan, **columns)


def rows_of(url: Path | str, *names: str, **columns: Any) -> list[tuple[Any, ...]]:
    """Return the named columns of an input and the errors, by row."""
    table = read_all(url, **{"kept": names} | columns)
    return list(zip(*(table[name].to_pylist() for name in (*names, "error")), strict=True))
