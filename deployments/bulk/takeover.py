"""Rows that an older output has the vectors of already: found by what was embedded, and copied.

Each file of an output says in its metadata what its vectors are, and a digest of the text and the
image of each row. A row of another job with the same digest and such vectors needs no tower.
"""

import base64
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deployments.bulk.columns import DIGEST, ERROR, VECTOR_COLUMNS, put
from deployments.bulk.identity import Identity
from deployments.bulk.options import EmbedOptions
from deployments.bulk.prepare import locate, source_of
from deployments.bulk.reading.files import open_input

DIGESTS = "block.digests"
DIGEST_BYTES = 16
READERS = 16  # footers of the old output that are read at once

Digests = NDArray[np.uint64]  # [rows, 2]
Places = NDArray[np.int64]


def digest_column(table: pa.Table, options: EmbedOptions) -> pa.Array:
    """Return the digest of what each row embeds, null where the row has an error already.

    An image is known by its bytes, or by its address, size and time of change if it is a local
    file, or else by its address alone.
    """
    nulls = [None] * table.num_rows
    names = options.text, options.image
    texts, images = (nulls if x is None else table[x].to_pylist() for x in names)
    rows = zip(texts, images, table[ERROR].to_pylist(), strict=True)
    digests = [None if error else _digest(x, y, options.folder) for x, y, error in rows]
    return pa.array(digests, pa.binary(DIGEST_BYTES))


def _digest(text: object, image: object, folder: str) -> bytes | None:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    source = source_of(image)
    if isinstance(source, str):
        source = locate(source, folder)
    for part in (text, source):
        data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
        digest.update(f"{type(part).__name__} {len(data)} ".encode())
        digest.update(data)
    if isinstance(source, str) and source.startswith("file://"):
        try:
            file = os.stat(unquote(urlsplit(source).path))
        except OSError:
            return None  # its row will say why
        digest.update(f"{file.st_size} {file.st_mtime_ns}".encode())
    return digest.digest()


def digests_of(table: pa.Table) -> bytes:
    """Return the digests of a finished table for its metadata, zeros for rows with errors."""
    rows = zip(table[DIGEST].to_pylist(), table[ERROR].to_pylist(), strict=True)
    return base64.b64encode(as_numbers([None if error else x for x, error in rows]).tobytes())


@dataclass(frozen=True)
class OldRows:
    """The rows of an output that carry a job's vectors, by their digests."""

    urls: tuple[str, ...]  # its files
    starts: Places  # of the first row of each file; rows are counted over all files
    digests: Digests  # of the rows, each once, by their first halves upwards
    places: Places  # of the row of each digest

    @classmethod
    def of(cls, urls: Sequence[str], identity: Identity) -> "OldRows":
        """Look at the footers of an output's files."""
        with ThreadPoolExecutor(READERS) as readers:
            found = list(readers.map(lambda x: _stated(x, identity), urls))
        starts = np.cumsum([0, *(len(x) for x in found)], dtype=np.int64)
        rows = np.concatenate([np.empty((0, 2), np.uint64), *found])
        _, places = np.unique(rows[:, 0], return_index=True)
        places = places[rows[places].any(axis=1)]  # zeros are rows with an error
        return cls(tuple(urls), starts, rows[places], places.astype(np.int64))

    def find(self, digests: pa.ChunkedArray) -> Places:
        """Return the place of each row, -1 where the old output does not have its vectors."""
        if not len(self.places):
            return np.full(len(digests), -1, np.int64)
        wanted = as_numbers(digests.to_pylist())
        at = np.searchsorted(self.digests[:, 0], wanted[:, 0]).clip(max=len(self.places) - 1)
        return np.where((self.digests[at] == wanted).all(axis=1), self.places[at], -1)

    def fill(self, table: pa.Table, places: Places) -> pa.Table:
        """Copy the vectors of the rows that the old output has, at the places that `find` gave."""
        files = np.searchsorted(self.starts, places, side="right") - 1
        files[places < 0] = -1
        names = [name for name in VECTOR_COLUMNS if name in table.column_names]
        for file in np.unique(files[places >= 0]).tolist():
            rows = np.flatnonzero(files == file)
            with open_input(self.urls[file]) as source:
                old = pq.read_table(source, columns=names)
            order = np.arange(table.num_rows)
            order[rows] = table.num_rows + places[rows] - self.starts[file]
            for name in set(names) & set(old.column_names):
                parts = [*table[name].chunks, *old[name].cast(table[name].type).chunks]
                table = put(table, name, pa.concat_arrays(parts).take(pa.array(order)))
        return table


def _stated(url: str, identity: Identity) -> Digests:
    """Return the digests of a file's rows, zeros for those that cannot be taken over."""
    with open_input(url) as source:
        file = pq.ParquetFile(source)
        count, stated = file.metadata.num_rows, file.schema_arrow.metadata or {}
    data = base64.b64decode(stated.get(DIGESTS.encode(), b""))
    if len(data) != count * DIGEST_BYTES or not identity.has_vectors_of(stated):
        return np.zeros((count, 2), np.uint64)
    return np.frombuffer(data, np.uint64).reshape(count, 2)


def as_numbers(digests: Sequence[bytes | None]) -> Digests:
    """Return digests as pairs of numbers, zeros where there is none."""
    data = b"".join(x or bytes(DIGEST_BYTES) for x in digests)
    return np.frombuffer(data, np.uint64).reshape(len(digests), 2)
