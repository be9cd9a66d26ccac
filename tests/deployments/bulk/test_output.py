import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deployments.bulk.columns import seconds_of, vector_columns
from deployments.bulk.identity import Identity
from deployments.bulk.output import BlockWriter, OutputFolder
from deployments.bulk.reading.tables import BLOCK
from deployments.model.errors import OptionError

IDENTITY = Identity("m", "abc", 4, "float32", "", "native", "{}", "{}", "", False, "{}", "123")


def block(number: int, rows: int) -> pa.Table:
    return pa.table(
        {
            "id": [f"{number}-{i}" for i in range(rows)],
            "row": list(range(rows)),
            "text_embedding": vector_columns({}, rows, 4, "float32")[0],
            "error": pa.array(["bad"] * rows, pa.string()),
            BLOCK: [number] * rows,
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> OutputFolder:
    """An output with two finished blocks of three."""
    output = OutputFolder(str(tmp_path / "out"))
    assert output.begin(IDENTITY, resume=False) == {}
    writer = BlockWriter(output, IDENTITY, ("id",), {0: 2, 1: 2, 2: 1})
    for number in (0, 1):
        assert writer(block(number, 2)).to_pylist()[0]["errors"] == 2
    return output


def test_finished_blocks_are_known_by_their_names(folder: OutputFolder) -> None:
    """A file that was being written when the job was killed is none, and is removed."""
    partial = Path(folder.url) / ".block-00000002.parquet.77"
    partial.write_bytes(b"half")
    assert folder.begin(IDENTITY, resume=True) == {0: 2, 1: 2}
    assert not partial.exists()


def test_a_block_whose_rows_are_all_copied_took_no_time(folder: OutputFolder) -> None:
    """Its columns of seconds are null."""
    table = block(2, 1).append_column(seconds_of("prepare"), pa.nulls(1, pa.float64()))
    (figures,) = BlockWriter(folder, IDENTITY, ("id",), {2: 1})(table).to_pylist()
    assert (figures["rows"], figures["prepare_s"]) == (1, 0)


def test_a_finished_job_is_not_written_over(folder: OutputFolder) -> None:
    """Without `resume` an output that has a job is refused."""
    with pytest.raises(OptionError, match=r"2 blocks.*--resume"):
        folder.begin(IDENTITY, resume=False)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model", "other", "model was m, now other"),
        ("fingerprint", "def", "fingerprint was abc, now def"),
        ("dimensions", 8, "dimensions was 4, now 8"),
        ("precision", "int8", "precision was float32, now int8"),
        ("task", "retrieval.query", "task was , now retrieval.query"),
        ("input", "456", "input was 123, now 456"),
    ],
)
def test_another_job_does_not_resume(
    folder: OutputFolder, field: str, value: object, message: str
) -> None:
    """The message names what changed; nothing in the folder is touched."""
    before = sorted(Path(folder.url).iterdir())
    with pytest.raises(OptionError, match=f"cannot resume.*{message};"):
        folder.begin(replace(IDENTITY, **{field: value}), resume=True)
    assert sorted(Path(folder.url).iterdir()) == before


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    """Nothing is ever mixed with what somebody else wrote."""
    (tmp_path / "data.parquet").write_bytes(b"x")
    with pytest.raises(OptionError, match="files of something else"):
        OutputFolder(str(tmp_path)).begin(IDENTITY, resume=True)


def test_a_job_of_another_version_is_refused(folder: OutputFolder) -> None:
    """A job file without today's fields does not count as equal."""
    path = Path(folder.url) / "_job.json"
    path.write_text(json.dumps({"model": "m"}))
    with pytest.raises(OptionError, match="another version"):
        folder.begin(IDENTITY, resume=True)


def test_a_block_in_pieces_is_never_written(folder: OutputFolder) -> None:
    """Part of a block, or two at once, would be lost or doubled rows."""
    writer = BlockWriter(folder, IDENTITY, ("id",), {2: 2, 3: 2})
    for table in (block(2, 1), pa.concat_tables([block(2, 1), block(3, 1)])):
        with pytest.raises(RuntimeError, match="no whole block"):
            writer(table)
    assert len(list(Path(folder.url).glob("*.parquet"))) == 2


def test_files_say_what_their_vectors_are(folder: OutputFolder) -> None:
    """Model, fingerprint, dimensions and precision are in the metadata, internals are not."""
    schema = pq.read_schema(folder.block_url(0))
    assert schema.names == ["row", "id", "text_embedding", "error"]
    assert schema.field("text_embedding").type == pa.list_(pa.float32(), 4)
    metadata = {key.decode(): value.decode() for key, value in schema.metadata.items()}
    assert metadata["embedding.model"] == "m"
    assert metadata["embedding.fingerprint"] == "abc"
    assert metadata["embedding.dimensions"] == "4"
    assert metadata["embedding.precision"] == "float32"
