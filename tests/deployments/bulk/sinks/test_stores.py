from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from deployments.bulk.columns import encode, vector_columns
from deployments.bulk.sinks.choose import open_store
from deployments.bulk.sinks.store import Store
from deployments.model.errors import OptionError
from tests.deployments.bulk.sinks.rows import (
    IDENTITY,
    KINDS,
    WIDTH,
    UrlIn,
    block,
    output_in,
    rows_of,
    vectors,
)


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
