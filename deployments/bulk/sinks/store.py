"""An output in a database: each row once under its id, and which blocks are finished beside it.

The blocks are noted in a second table, after their rows. A block that runs twice, after a kill or
in a worker that was thought dead, writes the same rows under the same ids.
"""

import base64
import hashlib
import itertools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from deployments.bulk.columns import ERROR
from deployments.bulk.identity import Identity
from deployments.bulk.reading.tables import ROW
from deployments.model.errors import OptionError

FINGERPRINT = "fingerprint"
JOB = "job"
KEY = "key"
START = -1  # in place of a block's number: the job itself
VECTOR_FIELDS = ("fingerprint", "dimensions", "precision", "task")
BLOCKS = pa.schema(
    [
        pa.field(KEY, pa.string(), nullable=False),
        pa.field(JOB, pa.string()),
        pa.field("block", pa.int64()),
        pa.field("errors", pa.int64()),
        pa.field("identity", pa.string()),
    ]
)
RETRY_S = (1.0, 3.0, 10.0)  # pauses before a block is written again to a store that failed


@dataclass(frozen=True)
class Store(ABC):
    """What a database has to do; made anew in each process from its URL.

    Its tables are named by what follows the name that the URL gives: nothing, or "_blocks".
    """

    url: str
    transient: ClassVar[tuple[type[Exception], ...]]  # errors after which another try may work

    @property
    def shown(self) -> str:
        """The URL without its password."""
        return self.url

    @abstractmethod
    def create(self, part: str, schema: pa.Schema, key: str) -> None:
        """Create a table, unless it is there, with a column `key` that is unique.

        Raises:
            OptionError: it cannot hold such a column, or has another table of that name.
        """

    @abstractmethod
    def upsert(self, part: str, table: pa.Table, key: str) -> None:
        """Write rows over those with the same key, or add them.

        Of two rows of one job with the same key, the one further down its input should stay.
        """

    @abstractmethod
    def rows(self, part: str) -> list[dict[str, Any]]:  # Any: values of any column
        """Return all rows of a table, or none if it is not there."""

    @abstractmethod
    def count(self, job: str) -> int:
        """Return how many rows of a job the store holds."""


@dataclass(frozen=True)
class StoreOutput:
    """The output of one job in a store."""

    store: Store
    kept: Mapping[str, pa.DataType]  # the columns of the input that it holds, with `row`
    key: str  # the one of them that is unique
    vectors: Mapping[str, pa.DataType]  # the columns with vectors, and scales if there are some

    @property
    def shown(self) -> str:
        """Where the output is, without a password."""
        return self.store.shown

    @property
    def schema(self) -> pa.Schema:
        """The columns of the table."""
        kept = [pa.field(name, kind, nullable=name != self.key) for name, kind in self.kept.items()]
        names = (ERROR, FINGERPRINT, JOB)
        vectors = [pa.field(name, kind) for name, kind in self.vectors.items()]
        return pa.schema([*kept, *vectors, *(pa.field(name, pa.string()) for name in names)])

    def begin(self, identity: Identity, resume: bool) -> dict[int, int]:
        """Create the tables, or look what they hold.

        Other jobs may be there, as long as their vectors compare with those of this one.
        """
        taken = [name for name in self.kept if name in (FINGERPRINT, JOB)]
        if taken:
            raise OptionError(f"a kept column may not be named {', '.join(taken)} in a database")
        try:
            notes = self.store.rows("_blocks")
        except self.store.transient as error:
            raise OptionError(f"the output {self.shown!r} cannot be reached: {error}") from error
        job = job_of(identity)
        jobs = {x[JOB]: Identity.from_json(x["identity"]) for x in notes if x["block"] == START}
        finished = {x["block"]: x["errors"] for x in notes if x[JOB] == job and x["block"] != START}
        if job in jobs and not resume:
            raise OptionError(
                f"the output {self.shown!r} has this job already ({len(finished):,} blocks); "
                "continue it with --resume"
            )
        for name, other in itertools.product(VECTOR_FIELDS, jobs.values()):
            if (old := getattr(other, name)) != (new := getattr(identity, name)):
                raise OptionError(
                    f"the output {self.shown!r} holds vectors of another {name} ({old or 'none'}, "
                    f"now {new or 'none'}), which do not compare; write to another table"
                )
        if jobs and resume and job not in jobs:
            identity.check_same(next(iter(jobs.values())))
        self.store.create("", self.schema, self.key)
        self.store.create("_blocks", BLOCKS, KEY)
        self._note(identity, START, 0)
        return finished

    def write(self, number: int, table: pa.Table, errors: int, identity: Identity) -> None:
        """Write a block; a row without an id is left out, see `missing`."""
        rows = last_of_each(table, self.key)
        rows = rows.append_column(FINGERPRINT, pa.repeat(identity.fingerprint, rows.num_rows))
        rows = rows.append_column(JOB, pa.repeat(job_of(identity), rows.num_rows))
        rows = rows.select(self.schema.names).cast(self.schema)
        for pause_s in (*RETRY_S, None):
            try:
                self.store.upsert("", rows, self.key)
                self._note(identity, number, errors)
                return
            except self.store.transient:
                if pause_s is None:
                    raise
                time.sleep(pause_s)

    def missing(self, rows: int, identity: Identity) -> int:
        """Return how many of a job's rows have no id, or one that another row has too."""
        return rows - self.store.count(job_of(identity))

    def _note(self, identity: Identity, number: int, errors: int) -> None:
        job = job_of(identity)
        stated = identity.to_json().decode() if number == START else None
        note = {KEY: f"{job}/{number}", JOB: job, "block": number}
        row = note | {"errors": errors, "identity": stated}
        self.store.upsert("_blocks", pa.Table.from_pylist([row], BLOCKS), KEY)


def check_columns(shown: str, wrong: list[str]) -> None:
    """Refuse a table without some of a job's columns, or with other types for them.

    Raises:
        OptionError: there are some.
    """
    if wrong:
        raise OptionError(
            f"the table {shown!r} lacks columns or has other types for them: {', '.join(wrong)}; "
            "name another table"
        )


def job_of(identity: Identity) -> str:
    """Return a short name of a job that no other has."""
    return hashlib.sha256(identity.to_json()).hexdigest()[:16]


def last_of_each(table: pa.Table, key: str) -> pa.Table:
    """Return the rows that have a key, of equal keys the last; NaN is none."""
    keys = enumerate(table[key].to_pylist())
    places = {key: index for index, key in keys if key is not None and key == key}
    return table.take(pa.array(sorted(places.values()), pa.int64()))


def plain(value: object) -> object:
    """Return a value as JSON has it; NaN, times and decimals become text, bytes base64."""
    match value:
        case dict():
            return {name: plain(part) for name, part in value.items()}
        case list():
            return [plain(part) for part in value]
        case bytes():
            return base64.b64encode(value).decode()
        case float() if not math.isfinite(value):
            return str(value)
        case None | bool() | int() | float() | str():
            return value
    return str(value)


def not_earlier(old: str, new: str) -> str:
    """Return SQL: the row `new` is not further up in the input of the job that wrote `old`."""
    return f"({old}.{JOB} = {new}.{JOB} and {old}.{ROW} > {new}.{ROW}) is not true"
