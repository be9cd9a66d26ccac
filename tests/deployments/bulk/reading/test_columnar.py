"""Files and tables whose columns have types."""

import gzip
import json
from decimal import Decimal

import deltalake
import lance
import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet as pq
import pytest

from deployments.bulk.reading.blocks import cut_input
from deployments.bulk.reading.formats import MODULES
from deployments.bulk.reading.tables import BlockReader, Layout
from deployments.model.errors import OptionError
from tests.deployments.bulk.reading.reading import read_all, read_plan, rows_of


@pytest.mark.parametrize("block_rows", [1, 3, 7, 100])
@pytest.mark.parametrize("kind", ["parquet", "orc", "feather"])
def test_rows_come_in_order_from_several_files(tmp_path, block_rows, kind):
    """Whatever the row groups, each row is read once, with its number in the input."""
    for part, start in (("a", 0), ("b", 10)):
        values = list(range(start, start + 10))
        table = pa.table({"id": values, "text": [str(x) for x in values], "other": values})
        path = tmp_path / f"{part}.{kind}"
        if kind == "parquet":
            pq.write_table(table, path, row_group_size=4)
        elif kind == "orc":
            pyarrow.orc.write_table(table, path)
        else:
            pyarrow.feather.write_feather(table, path, chunksize=4)
    table = read_all(tmp_path, block_rows, kept=("id",))
    assert table["id"].to_pylist() == table["row"].to_pylist() == list(range(20))
    assert table["text"].to_pylist() == [str(x) for x in range(20)]


@pytest.mark.parametrize("block_rows", [1, 4, 100])
def test_a_lance_table_is_read_as_it_was_when_the_job_was_cut(tmp_path, block_rows):
    """Without the rows that were deleted before, and without those that came later."""
    url = str(tmp_path / "in.lance")
    for start in (0, 7):
        table = pa.table({"id": range(start, start + 7), "m": [{"text": f"t{start}"}] * 7})
        lance.write_dataset(table, url, mode="append" if start else "create")
    lance.dataset(url).delete("id in (2, 9)")
    plan = cut_input(url, block_rows)
    lance.write_dataset(table, url, mode="append")
    found = read_plan(plan, text="m.text", kept=("id",))
    assert found["id"].to_pylist() == [x for x in range(14) if x not in (2, 9)]
    assert found["m.text"].to_pylist() == ["t0"] * 6 + ["t7"] * 6
    assert found["row"].to_pylist() == list(range(12))
    assert cut_input(url, block_rows).fingerprint != plan.fingerprint


def test_a_delta_table_is_its_files_of_now(tmp_path, inputs):
    """Without rows that were deleted or written over; its partitions are columns."""
    url = tmp_path / "in"
    table = pa.table({"text": ["a", "b", "c"], "lang": ["de", None, "d e"]})
    deltalake.write_deltalake(url, table, partition_by=["lang"])
    deltalake.DeltaTable(url).delete("text = 'a'")
    deltalake.write_deltalake(url, table.slice(0, 1), mode="append")
    deltalake.DeltaTable(url).update(updates={"text": "'new'"}, predicate="text = 'c'")
    assert len(list(url.rglob("*.parquet"))) > 3
    plan = cut_input(str(url), 2)
    assert plan.lost == {}
    found = read_plan(plan, kept=("lang",))
    rows = zip(found["lang"].to_pylist(), found["text"].to_pylist(), strict=True)
    expected = {(None, "b"), ("de", "a"), ("d e", "new")}
    assert sorted(rows, key=str) == sorted(expected, key=str)


def test_a_delta_table_whose_files_do_not_tell_its_rows_is_refused(tmp_path):
    """Deleted rows may be noted beside a file, and columns may have other names in it."""
    deltalake.write_deltalake(tmp_path, pa.table({"text": ["a"]}))
    log = tmp_path / "_delta_log" / f"{0:020}.json"
    plain = log.read_text()
    features = '"readerFeatures":["deletionVectors"],"writerFeatures":["deletionVectors"],'
    versions = '"minReaderVersion":1,"minWriterVersion":2'
    for needs in (
        '"minReaderVersion":2,"minWriterVersion":5',
        f'{features}"minReaderVersion":3,"minWriterVersion":7',
    ):
        log.write_text(plain.replace(versions, needs))
        with pytest.raises(OptionError, match=r"Delta table.*read_delta"):
            cut_input(str(tmp_path), 2)
    log.write_text(plain)
    assert cut_input(str(tmp_path), 2).num_rows == 1


def test_parquet_files_of_several_schemas(tmp_path):
    """Nulls, widths, a missing column, another order, dictionaries."""
    tables = [
        pa.table({"id": pa.array([1], pa.int32()), "text": pa.nulls(1), "lang": ["de"]}),
        pa.table({"text": ["b"], "id": pa.array([2**40], pa.int64())}),
        pa.table({"id": pa.array([3], pa.int16()), "text": pa.array(["c"]).dictionary_encode()}),
        pa.table({"id": pa.array([], pa.int64()), "text": pa.array([], pa.string())}),
    ]
    for i, table in enumerate(tables):
        pq.write_table(table, tmp_path / f"{i}.parquet")
    assert rows_of(tmp_path, "id", "text", "lang") == [
        (1, None, "de", None),
        (2**40, "b", None, None),
        (3, "c", None, None),
    ]
    pq.write_table(pa.table({"id": ["x"], "text": ["d"]}), tmp_path / "4.parquet")
    assert [row[0] for row in rows_of(tmp_path, "id", "text")] == ["1", str(2**40), "3", "x"]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (pa.array([2**63 + 5], pa.uint64()), pa.array([-3]), [str(2**63 + 5), "-3"]),
        (pa.array([7], pa.int8()), pa.array([2**63 + 5], pa.uint64()), ["7", str(2**63 + 5)]),
        (pa.array([Decimal("1" * 20 + ".10")]), pa.array([-3.5]), ["1" * 20 + ".10", "-3.5"]),
        (pa.array([2**32 - 1], pa.uint32()), pa.array([-3]), [2**32 - 1, -3]),
    ],
)
def test_numbers_that_no_type_of_numbers_holds_are_text(tmp_path, one, other, expected):
    """Neither an error nor another number takes the place of an id."""
    for name, values in (("a", one), ("b", other)):
        pq.write_table(pa.table({"text": ["t"], "id": values}), tmp_path / f"{name}.parquet")
    assert rows_of(tmp_path, "id") == [(value, None) for value in expected]


def test_a_file_that_breaks_later_gives_each_of_its_rows_an_error(tmp_path, inputs):
    """The number of rows is that of the file's footer."""
    path = inputs.parquet(tmp_path / "a.parquet", {"text": [f"text {x}" * 50 for x in range(500)]})
    plan = cut_input(str(path), 1000)
    data = bytearray(path.read_bytes())
    data[10:2000] = bytes(1990)
    path.write_bytes(data)
    table = BlockReader(Layout.choose(plan, None, None, ())).read(plan.blocks[0])
    assert table.num_rows == 500
    assert table["error"].null_count == 0
    assert "cannot be read" in table["error"][0].as_py()


@pytest.mark.parametrize(
    ("name", "opened"),
    [("a.parquet", 2), ("a.orc", 2), ("a.json", 2), ("a.csv.gz", 2), ("a.csv", 5), ("a.jsonl", 5)],
)
def test_a_worker_of_several_reads_what_is_packed_once(tmp_path, monkeypatch, name, opened):
    """Blocks that others read are passed over where finding the next is as slow as reading up."""
    rows = [{"id": str(i), "text": f"t{i}"} for i in range(50)]
    text = {
        "json": json.dumps(rows),
        "jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "csv": "id,text\n" + "".join(f"{row['id']},{row['text']}\n" for row in rows),
    }
    path, kind = tmp_path / name, name.split(".")[1]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=20)
    elif kind == "orc":
        pyarrow.orc.write_table(pa.Table.from_pylist(rows), path)
    else:
        data = text[kind].encode()
        path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    plan = cut_input(str(path), 7)
    calls, module = [], MODULES[plan.blocks[0].kind]
    open_rows = module.rows
    monkeypatch.setattr(module, "rows", lambda *x: calls.append(x) or open_rows(*x))
    reader = BlockReader(Layout.choose(plan, None, None, ("id",)))
    for number in (0, 1, 3, 5, 7, 2):  # 7 is the last, of one row; a lost worker's block comes late
        block = plan.blocks[number]
        expected = [row["id"] for row in rows[number * 7 : number * 7 + 7]]
        assert reader.read(block)["id"].to_pylist() == expected
    assert len(calls) == opened
