import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from deployments.bulk.columns import encode, vector_columns
from deployments.bulk.identity import Identity
from deployments.bulk.options import EmbedOptions
from deployments.bulk.output import OutputFolder
from deployments.bulk.reading.tables import Layout
from deployments.bulk.sinks.choose import open_output, open_store
from deployments.bulk.sinks.store import Store, StoreOutput
from deployments.model.errors import OptionError

STORES = ("lance", "postgres", "qdrant")
WIDTH = 16
IDENTITY = Identity("m", "abc", WIDTH, "float32", "", "native", "{}", "{}", "", False, "{}", "123")
KINDS = {
    "row": pa.int64(),
    "id": pa.string(),
    "n": pa.int64(),
    "more": pa.struct({"x": pa.float64()}),
}
UrlIn = Callable[[str], str]


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, url_in: UrlIn) -> Store:
    """A database without tables of this test."""
    found = open_store(url_in(request.param))
    assert found is not None
    return found


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


def test_a_block_written_twice_is_there_once(store: Store) -> None:
    """With its values, its fingerprint and its error; resuming knows that it is finished."""
    output = output_in(store)
    assert output.begin(IDENTITY, resume=False) == {}
    for _ in range(2):
        output.write(7, block(["a", "b", "c"]), 1, IDENTITY)
    rows = rows_of(store)
    assert sorted(rows) == ["a", "b", "c"]
    assert [rows[x]["n"] for x in "abc"] == [0, 1, 2]
    assert {row["fingerprint"] for row in rows.values()} == {"abc"}
    assert rows["a"]["error"] is None
    assert rows["c"]["error"] in ("bad\0", "bad\ufffd")
    assert output.begin(IDENTITY, resume=True) == {7: 1}
    assert output.missing(3, IDENTITY) == 0


def test_writers_at_the_same_time_double_nothing(store: Store) -> None:
    """As when a worker that was thought dead still writes."""
    output = output_in(store)
    output.begin(IDENTITY, resume=False)
    blocks = [[f"{number}-{i}" for i in range(20)] for number in range(3)] * 2

    def write(number: int) -> None:
        output.write(number % 3, block(blocks[number], 20 * (number % 3)), 1, IDENTITY)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(write, range(6)))
    assert sorted(rows_of(store)) == sorted({x for ids in blocks for x in ids})


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


@pytest.mark.parametrize("field", ["fingerprint", "dimensions", "precision", "task"])
def test_vectors_that_do_not_compare_are_refused(store: Store, field: str) -> None:
    """Another input is welcome in the same table, another model is not."""
    output = output_in(store)
    output.begin(IDENTITY, resume=False)
    output.begin(replace(IDENTITY, input="456"), resume=False)
    with pytest.raises(OptionError, match=f"another {field}"):
        output.begin(replace(IDENTITY, **{field: "8"}), resume=False)
    with pytest.raises(OptionError, match="--resume"):
        output.begin(IDENTITY, resume=False)
    with pytest.raises(OptionError, match="implementation was native, now reference"):
        output.begin(replace(IDENTITY, implementation="reference"), resume=True)


def test_a_table_of_somebody_else_is_refused(store: Store) -> None:
    """It has other columns, or other vectors."""
    store.create("", pa.schema([pa.field("id", pa.string(), nullable=False)]), "id")
    with pytest.raises(OptionError, match="name another"):
        output_in(store).begin(IDENTITY, resume=False)


@pytest.mark.parametrize("name", ["postgres", "lance"])
def test_a_column_of_another_type_is_refused(name: str, url_in: UrlIn) -> None:
    """PostgreSQL took whole numbers for floats bit by bit: 2 was 1e-323."""
    store = open_store(url_in(name))
    assert store is not None
    replace(output_in(store), kept=KINDS | {"n": pa.float64()}).begin(IDENTITY, resume=False)
    with pytest.raises(OptionError, match="other types for them: n; name another"):
        output_in(store).begin(replace(IDENTITY, input="456"), resume=False)


@pytest.mark.parametrize(("name", "precision"), [("postgres", "int8"), ("qdrant", "binary")])
def test_a_precision_that_a_database_lacks_is_refused(
    name: str, precision: str, url_in: UrlIn
) -> None:
    """Before anything runs, with those that it has."""
    store = open_store(url_in(name))
    assert store is not None
    part = {"int8": pa.int8(), "binary": pa.uint8()}[precision]
    with pytest.raises(OptionError, match="use --precision"):
        output_in(store, part, WIDTH).begin(IDENTITY, resume=False)


def test_bytes_of_one_length_are_bytes(url_in: UrlIn) -> None:
    """Not the text that Python shows for them."""
    store = open_store(url_in("postgres"))
    assert store is not None
    output = replace(output_in(store), kept=KINDS | {"id": pa.binary(2)})
    output.begin(IDENTITY, resume=False)
    ids = pa.array([b"a\0", b"b\0"], pa.binary(2))
    output.write(0, block(["a", "b"]).set_column(1, "id", ids), 1, IDENTITY)
    assert {row["id"] for row in store.rows("")} == {b"a\0", b"b\0"}


def test_postgres_finds_neighbours_as_numpy_does(url_in: UrlIn) -> None:
    """In each of its three types, by pgvector's own operators."""
    import psycopg

    rows = vectors(50)
    url = url_in("postgres")
    operators = {"float32": "<=>", "float16": "<=>", "binary": "<~>"}
    for precision, operator in operators.items():
        store = open_store(url + precision)
        assert store is not None
        column = vector_columns(dict(enumerate(rows)), 50, WIDTH, precision)[0]
        table = block([str(i) for i in range(50)]).set_column(4, "text_embedding", column)
        output = output_in(store, column.type.value_type, column.type.list_size)
        output.begin(IDENTITY, resume=False)
        output.write(0, table, 0, IDENTITY)
        name = (url + precision).rpartition("table=")[2]
        query = f"select (select text_embedding from {name} where n = 3) {operator} text_embedding"
        with psycopg.connect(url.partition("&table")[0]) as connection:
            found = [x for (x,) in connection.execute(f"{query} from {name} order by n")]
        exact = 1 - rows @ rows[3]
        if precision == "binary":
            bits = np.unpackbits(encode(rows, "binary")[0], axis=1)
            exact = (bits != bits[3]).sum(axis=1)
        np.testing.assert_allclose(found, exact, atol=1e-3)


def test_lance_and_qdrant_give_back_the_vectors(url_in: UrlIn) -> None:
    """As float32, and null where a row has an error."""
    import lance
    from qdrant_client import QdrantClient

    for name in ("lance", "qdrant"):
        store = open_store(url_in(name))
        assert store is not None
        output = output_in(store)
        output.begin(IDENTITY, resume=False)
        output.write(0, block(["a", "b", "c"]), 1, IDENTITY)
    table = lance.dataset(url_in("lance")).to_table().sort_by("n")
    found = table["text_embedding"].to_pylist()
    np.testing.assert_allclose(found[:2], vectors(3)[:2])
    assert found[2] is None
    client = QdrantClient(path=url_in("qdrant").removeprefix("qdrant://").partition("?")[0])
    nearest = client.query_points("rows", vectors(3)[1].tolist(), using="text_embedding").points
    client.close()
    assert [point.payload["id"] for point in nearest] == ["b", "a"]
    assert nearest[0].score == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://u:secret@localhost/db", "names no table"),
        ("qdrant://localhost:6333/", "names no collection"),
    ],
)
def test_a_url_without_a_table_is_refused(url: str, message: str) -> None:
    """The password is not shown."""
    store = open_store(url)
    assert store is not None
    assert "secret" not in store.shown
    with pytest.raises(OptionError, match=message):
        store.rows("")


def test_a_database_that_does_not_answer_is_named() -> None:
    """In one line, before anything runs."""
    for url in ("postgresql://localhost:1/db?table=t", "qdrant://localhost:1/t"):
        store = open_store(url)
        assert store is not None
        with pytest.raises(OptionError, match="cannot be reached"):
            output_in(store).begin(IDENTITY, resume=False)


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
