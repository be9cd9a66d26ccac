"""From one model to the next: how a new output compares with the old one, and a manifest of it."""

import json
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from deployments.bulk.columns import IMAGE_EMBEDDING, TEXT_EMBEDDING
from deployments.bulk.identity import Identity
from deployments.bulk.output import JOB_FILE, write_bytes
from deployments.bulk.reading.files import open_input, split
from deployments.bulk.reading.tables import ROW
from deployments.bulk.reading.types import merged
from deployments.bulk.sinks.choose import open_store
from deployments.model.errors import OptionError
from deployments.model.output import Rows

MANIFEST = "_manifest.json"
SAMPLE_ROWS = 1000
NEIGHBOURS = 10


@dataclass(frozen=True)
class Change:
    """How the vectors of one column changed, on a sample of rows that both outputs have.

    Attributes:
        rows: of the sample.
        overlap: mean share of a row's first ten neighbours in the sample that stayed, 0 to 1.
        cosine: mean of each row's old and new vector; None where their widths differ.
        lost: rows of the whole output with an old vector and no new one.
    """

    rows: int
    overlap: float
    cosine: float | None
    lost: int


@dataclass(frozen=True)
class Report:
    """A new output beside the old one: rows of each, and changes by column of vectors.

    Attributes:
        missing_rows: rows of the old output that the new one does not have.
    """

    old_rows: int
    new_rows: int
    missing_rows: int
    changes: dict[str, Change]


def identity_of(url: str) -> Identity:
    """Return what the vectors of an output are.

    Raises:
        OptionError: there is no output of a job.
    """
    try:
        with open_input(f"{url.rstrip('/')}/{JOB_FILE}") as file:
            return Identity.from_json(file.read())
    except OSError as error:
        raise OptionError(f"{url!r} is no output of a bulk job in parquet: {error}") from error


def check(old_url: str, new_url: str, new: Identity, key: str | None) -> None:
    """Refuse a job whose outputs could not be compared at its end.

    Raises:
        OptionError: they are one, the new one is in a database, or no column names their rows.
    """
    if open_store(new_url) is not None:
        raise OptionError("--reembed compares folders of parquet files; name a folder as OUTPUT")
    if split(old_url.rstrip("/")) == split(new_url.rstrip("/")):
        raise OptionError(f"the old output {old_url!r} stays as it is; name another as OUTPUT")
    if key_of(identity_of(old_url), new, key) is None:
        raise OptionError(
            f"the old output {old_url!r} is of another input, or has a column row of the input's "
            f"own: name the column of both that says which rows belong together by --id, not {key}"
        )


def key_of(old: Identity, new: Identity, key: str | None) -> str | None:
    """Return the column by which rows belong together: their place in one input, or the key."""
    kept, own = (json.loads(x.columns)["kept"] for x in (old, new))
    if old.files == new.files and ROW not in (*kept, *own):
        return ROW
    return key if key in kept else None


def finish(old_url: str, new_url: str, key: str | None) -> Report:
    """Compare a finished output with the old one, and write what it is and replaces beside it.

    Rows belong together by their places where the input is the same, and by `key` otherwise.
    """
    old, new = identity_of(old_url), identity_of(new_url)
    report = compare(old_url, new_url, key_of(old, new, key))
    stated = {
        "output": new_url,
        "replaces": old_url,
        "vectors": asdict(new),
        "replaced_vectors": asdict(old),
        "report": asdict(report),
    }
    write_bytes(f"{new_url.rstrip('/')}/{MANIFEST}", json.dumps(stated, indent=1).encode())
    return report


def compare(old_url: str, new_url: str, key: str | None = None) -> Report:
    """Compare two outputs row by row, by `key` or by place in the input.

    Reads the keys of all rows, and the vectors of a sample.

    Raises:
        OptionError: an output does not have the column `key`.
    """
    old, new = dataset_of(old_url), dataset_of(new_url)
    key = key or ROW
    for url, found in ((old_url, old), (new_url, new)):
        if key not in found.schema.names:
            raise OptionError(f"{url!r} has no column {key}; name one that both outputs have")
    kind = merged({key: x.schema.field(key).type} for x in (old, new))[key]
    old_keys, new_keys = (keys_of(x, key, kind) for x in (old, new))
    shared = {*old.schema.names} & {*new.schema.names}
    names = [name for name in (TEXT_EMBEDDING, IMAGE_EMBEDDING) if name in shared]
    changes = {name: change(old, new, key, kind, name) for name in names}
    return Report(len(old_keys), len(new_keys), missing(old_keys, new_keys), changes)


def keys_of(
    source: ds.Dataset, key: str, kind: pa.DataType, having: str | None = None
) -> pa.ChunkedArray:
    """Return the keys of all rows, or of those that have a vector."""
    chosen = None if having is None else ds.field(having).is_valid()
    return source.to_table({key: as_kind(key, kind)}, filter=chosen)[key]


def as_kind(key: str, kind: pa.DataType) -> ds.Expression:
    """Return the keys as the type that holds those of both outputs."""
    return ds.field(key).cast(kind, safe=False)


def missing(old_keys: pa.ChunkedArray, new_keys: pa.ChunkedArray) -> int:
    """Return how many of the old rows are not there; of rows with one key each counts."""
    old, new = (pc.value_counts(keys) for keys in (old_keys, new_keys))
    found = new.field("counts").take(pc.index_in(old.field("values"), new.field("values")))
    lost = pc.subtract(old.field("counts"), pc.fill_null(found, 0))
    return int(pc.sum(pc.max_element_wise(lost, 0)).as_py() or 0)


def change(old: ds.Dataset, new: ds.Dataset, key: str, kind: pa.DataType, name: str) -> Change:
    """Compare one column of vectors."""
    had, has = (pc.unique(keys_of(x, key, kind, name)) for x in (old, new))
    both = had.filter(pc.is_in(had, has))
    lost = len(had) - len(both)
    places = np.linspace(0, max(0, len(both) - 1), min(len(both), SAMPLE_ROWS), dtype=np.int64)
    sample = both.take(pa.array(places))
    if len(sample) < 2:
        return Change(len(sample), 1.0, None, lost)
    before, after = (vectors(x, key, name, sample) for x in (old, new))
    cosine = None
    if before.shape == after.shape:
        cosine = float((before * after).sum(axis=1).mean())
    return Change(len(sample), overlap(before, after), cosine, lost)


def overlap(before: Rows, after: Rows) -> float:
    """Return the mean share of each row's nearest rows that are the same in both matrices."""
    first, second = nearest(before), nearest(after)
    return float((first[:, :, None] == second[:, None, :]).any(axis=2).mean())


def nearest(rows: Rows) -> NDArray[np.int64]:
    """Return the places [n, 10] of the rows with the largest inner products, for each row."""
    scores = rows @ rows.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(rows) - 1)]


def vectors(source: ds.Dataset, key: str, name: str, sample: pa.Array) -> Rows:
    """Return the rows of a sample, in its order, float32 [n, width] of length 1."""
    own = as_kind(key, sample.type)
    wanted = own.isin(sample) & ds.field(name).is_valid()
    table = source.to_table({key: own, name: ds.field(name)}, filter=wanted)
    places = pc.index_in(sample, table[key].combine_chunks())
    values = table[name].combine_chunks()
    stored = values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1)
    if stored.dtype == np.uint8:  # the signs, as bits
        stored = np.unpackbits(stored, axis=1).astype(np.float32) * 2 - 1
    rows: Rows = stored[places].astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def dataset_of(url: str) -> ds.Dataset:
    """Return the blocks of an output."""
    system, path = split(url.rstrip("/"))
    return ds.dataset(path, filesystem=system, format="parquet")  # skips names with an underscore
