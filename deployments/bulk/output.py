"""The last stage, and the output folder: one parquet file for each finished block.

A file appears whole or not at all, under the name of its block. So the names alone say what is
finished, and a block that runs twice is written over, not added.
"""

import os
import re
import time
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from deployments.bulk import takeover
from deployments.bulk.columns import (
    DIGEST,
    ERROR,
    IMAGE_EMBEDDING,
    STAGES,
    TOKEN_IDS,
    VECTOR_COLUMNS,
    seconds_of,
)
from deployments.bulk.identity import Identity
from deployments.bulk.reading.files import S3, open_input, split
from deployments.bulk.reading.tables import BLOCK, ROW
from deployments.model.errors import OptionError

JOB_FILE = "_job.json"  # readers of folders skip names with an underscore
NAME = re.compile(r"block-(\d+)\.parquet")
TEMPORARY = re.compile(r"\.block-\d+\.parquet\.\d+")
ERRORS = "block.errors"


class Output(Protocol):
    """Where a job's rows go: a folder, or a table of a database."""

    @property
    def shown(self) -> str:
        """Its URL without a password."""

    def begin(self, identity: Identity, resume: bool) -> dict[int, int]:
        """Make it ready; returns the errors of each block that is finished.

        Raises:
            OptionError: there is a job already and `resume` is false, or one that does not go
                with this one.
        """

    def write(self, number: int, table: pa.Table, errors: int, identity: Identity) -> None:
        """Write a block, whole or not at all, or again."""

    def missing(self, rows: int, identity: Identity) -> int:
        """Return how many of the job's finished rows it does not hold."""


class OutputFolder:
    """A local folder or s3:// prefix with the blocks of one job."""

    def __init__(self, url: str) -> None:
        self.url = self.shown = url.rstrip("/")
        self._system, self._path = split(self.url)

    def block_url(self, number: int) -> str:
        """Return where a block is written; names sort as rows do."""
        return f"{self.url}/block-{number:08d}.parquet"

    def block_urls(self) -> list[str]:
        """Return the files of the blocks that are finished."""
        return [f"{self.url}/{name}" for name in sorted(self._names()) if NAME.fullmatch(name)]

    def begin(self, identity: Identity, resume: bool) -> dict[int, int]:
        """Create the folder, or check that it holds the same job."""
        names = self._names()
        finished = {int(match[1]) for name in names if (match := NAME.fullmatch(name))}
        if JOB_FILE in names:
            if not resume:
                raise OptionError(
                    f"the output {self.url!r} has a job already ({len(finished):,} blocks); "
                    "continue it with --resume, or choose another output"
                )
            with open_input(f"{self.url}/{JOB_FILE}") as file:
                identity.check_same(Identity.from_json(file.read()))
        elif names:
            raise OptionError(
                f"the output {self.url!r} has files of something else; choose another"
            )
        else:
            if not self.url.startswith(S3):
                self._system.create_dir(self._path, recursive=True)
            write_bytes(f"{self.url}/{JOB_FILE}", identity.to_json())
        for name in filter(TEMPORARY.fullmatch, names):
            self._system.delete_file(f"{self._path}/{name}")
        return {number: self._errors_of(number) for number in finished}

    def write(self, number: int, table: pa.Table, errors: int, identity: Identity) -> None:
        """Write a block as one file; a digest that it has of each row goes into its metadata."""
        stated: dict[str, str | bytes] = {**identity.metadata(), ERRORS: str(errors)}
        if DIGEST in table.column_names:
            stated[takeover.DIGESTS] = takeover.digests_of(table)
            table = table.drop_columns([DIGEST])
        table = table.replace_schema_metadata(stated)
        buffer = pa.BufferOutputStream()
        plain = [x.name for x in table.schema if not pa.types.is_fixed_size_list(x.type)]
        pq.write_table(table, buffer, use_dictionary=plain, write_statistics=plain)
        write_bytes(self.block_url(number), buffer.getvalue())

    def missing(self, rows: int, identity: Identity) -> int:
        """None: a folder has a row for each of the input."""
        return 0

    def _errors_of(self, number: int) -> int:
        with open_input(self.block_url(number)) as file:
            return int(pq.read_schema(file).metadata[ERRORS.encode()])

    def _names(self) -> list[str]:
        selector = fs.FileSelector(self._path, allow_not_found=True)
        return [info.base_name for info in self._system.get_file_info(selector)]


def write_bytes(url: str, data: bytes | pa.Buffer) -> None:
    """Write a file whole or not at all: through a rename, or by a store's own atomic upload."""
    system, path = split(url)
    is_local = isinstance(system, fs.LocalFileSystem)
    folder, _, name = path.rpartition("/")
    target = f"{folder}/.{name}.{os.getpid()}" if is_local else path
    with system.open_output_stream(target) as stream:
        stream.write(data)
    if is_local:
        system.move(target, path)


@dataclass(frozen=True)
class BlockWriter:
    """Writes each block that comes and returns a row of figures about it."""

    output: Output
    identity: Identity
    kept: tuple[str, ...]
    block_rows: dict[int, int]
    old: takeover.OldRows | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        """Write a whole block.

        Raises:
            RuntimeError: the rows are not those of exactly one block.
        """
        start_s = time.perf_counter()
        numbers = pc.unique(table[BLOCK]).to_pylist()
        if len(numbers) != 1 or table.num_rows != self.block_rows[numbers[0]]:
            raise RuntimeError(f"{table.num_rows} rows of blocks {numbers} are no whole block")
        figures = {"block": numbers[0], **figures_of(table)}
        if self.old is not None:
            places = self.old.find(table[DIGEST])
            figures["taken"] = int((places >= 0).sum())
            table = self.old.fill(table, places)
        names = dict.fromkeys((ROW, *self.kept, *VECTOR_COLUMNS, ERROR, DIGEST))
        table = table.select([name for name in names if name in table.column_names])
        self.output.write(numbers[0], table, int(figures["errors"]), self.identity)
        figures["write_s"] = time.perf_counter() - start_s
        return pa.Table.from_pylist([figures])


def figures_of(table: pa.Table) -> dict[str, int | float]:
    """Return the rows, errors, tokens and images of a block, and the seconds of each stage."""
    figures: dict[str, int | float] = {"rows": table.num_rows}
    for name, column in (("errors", ERROR), ("images", IMAGE_EMBEDDING)):
        figures[name] = pc.count(table[column]).as_py() if column in table.column_names else 0
    if TOKEN_IDS in table.column_names:
        figures["tokens"] = pc.sum(pc.list_value_length(table[TOKEN_IDS])).as_py() or 0
    seconds = {f"{stage}_s": seconds_of(stage) for stage in STAGES}
    shared = {x: y for x, y in seconds.items() if y in table.column_names}
    # Null where the rows are copied.
    return figures | {x: pc.sum(table[y]).as_py() or 0.0 for x, y in shared.items()}
