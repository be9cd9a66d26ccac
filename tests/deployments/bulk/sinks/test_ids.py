"""Rows are there once under their ids."""

import math
from collections.abc import Callable
from dataclasses import replace

import pyarrow as pa
import pytest

from deployments.bulk.options import EmbedOptions
from deployments.bulk.output import OutputFolder
from deployments.bulk.reading.tables import Layout
from deployments.bulk.sinks.choose import open_output, open_store
from deployments.bulk.sinks.store import Store, StoreOutput
from deployments.model.errors import OptionError
from tests.deployments.bulk.sinks.rows import (
    IDENTITY,
    KINDS,
    UrlIn,
    block,
    output_in,
    rows_of,
)


def test_rows_without_an_id_of_their_own_are_counted(store: Store) -> None:
    """Of equal ids in one block the last stays."""
    output = output_in(store)
    output.begin(IDENTITY, resume=False)
    output.write(0, block(["a", None, "b", "a", "d"]), 1, IDENTITY)
    rows = rows_of(store)
    assert sorted(rows) == ["a", "b", "d"]
    assert rows["a"]["n"] == 3
    assert output.missing(5, IDENTITY) == 2


def test_a_block_without_any_id_is_finished(store: Store) -> None:
    """As the rows of a file that can no longer be read; all of them are missing."""
    output = output_in(store)
    output.begin(IDENTITY, resume=False)
    output.write(3, block([None, None]), 2, IDENTITY)
    assert store.rows("") == []
    assert output.missing(2, IDENTITY) == 2
    assert output.begin(IDENTITY, resume=True) == {3: 2}


def test_an_id_that_is_no_number_is_none(store: Store) -> None:
    """NaN stands for nothing, as null does, and -0.0 is 0.0."""
    output = replace(output_in(store), kept=KINDS | {"id": pa.float64()})
    output.begin(IDENTITY, resume=False)
    rows = block(["a", "b", "c", "d", "e"])
    ids = pa.array([math.nan, -0.0, 0.0, math.nan, 1.5])
    output.write(0, rows.set_column(1, "id", ids), 1, IDENTITY)
    assert sorted((row["id"], row["n"]) for row in store.rows("")) == [(0.0, 2), (1.5, 4)]
    assert output.missing(5, IDENTITY) == 3


def test_an_id_is_one_value_and_row_is_the_place_in_the_input(
    make_options: Callable[..., EmbedOptions],
) -> None:
    """Refused before anything runs; a folder may have a column row of the input's own."""
    options = make_options(text="text")
    nested = pa.struct({"x": pa.int64()})
    layout = Layout("text", None, ("id", "row"), {"text": pa.string(), "id": nested, "row": nested})
    for url in ("rows.lance", "rows"):
        with pytest.raises(OptionError, match=r"column id is struct<.*an id is one value"):
            open_output(url, layout, options, "id")
    layout = replace(layout, types={"text": pa.string(), "id": pa.int64(), "row": pa.int64()})
    with pytest.raises(OptionError, match="may not be named row"):
        open_output("rows.lance", layout, options, "id")
    assert isinstance(open_output("rows", layout, options, "id"), OutputFolder)


@pytest.mark.parametrize("name", ["lance", "postgres"])
def test_the_last_of_equal_ids_stays_whichever_block_is_written_first(
    name: str, url_in: UrlIn
) -> None:
    """Qdrant cannot tell; there it is the block that was written last."""
    store = open_store(url_in(name))
    assert store is not None
    output = output_in(store)
    output.begin(IDENTITY, resume=False)
    output.write(1, block(["a", "c"], 10), 1, IDENTITY)
    output.write(0, block(["a", "b"], 0), 1, IDENTITY)
    assert rows_of(store)["a"]["n"] == 10
    second = replace(IDENTITY, input="456")  # another job writes over all the same
    output.begin(second, resume=False)
    output.write(0, block(["a", "e"], 0), 1, second)
    assert rows_of(store)["a"]["n"] == 0
    assert output.missing(4, IDENTITY) == 2


def test_a_database_needs_an_id_and_int8_rows_their_scales(
    make_options: Callable[..., EmbedOptions],
) -> None:
    """Lance holds every precision; a folder needs no id."""
    options = make_options(text="text", precision="int8")
    layout = Layout("text", None, ("id",), {"text": pa.string(), "id": pa.string()})
    with pytest.raises(OptionError, match="--id"):
        open_output("rows.lance", layout, options, None)
    assert isinstance(open_output("rows", layout, options, None), OutputFolder)
    output = open_output("rows.lance", layout, options, "id")
    assert isinstance(output, StoreOutput)
    names = ["row", "id", "text_embedding", "text_scale", "error", "fingerprint", "job"]
    assert output.schema.names == names
