"""Qdrant: `qdrant://host:6333/collection`; local mode: `qdrant:///folder?collection=name`."""

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pyarrow as pa
from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import ResponseHandlingException
from qdrant_client.models import (
    Datatype,
    Distance,
    FieldCondition,
    Filter,
    MatchValue,
    PointStruct,
    VectorParams,
)

from deployments.bulk.sinks.store import JOB, Store, plain
from deployments.model.errors import OptionError

API_KEY = "QDRANT_API_KEY"  # an environment variable, as of Qdrant's own tools
POINTS = 128  # in one request: 128 vectors of 1,024 are some 3 MB of JSON; Qdrant takes 32 MB
DATATYPES = {pa.float32(): Datatype.FLOAT32, pa.float16(): Datatype.FLOAT16}


class Qdrant(Store):
    """A collection; a row is a point, its columns the payload, its vectors named as the columns.

    The point's id is the key where that is a whole number from 0, and made of it otherwise. The URL
    holds no password: the key is in the environment.
    """

    transient = (ResponseHandlingException, httpx.TransportError)

    def create(self, part: str, schema: pa.Schema, key: str) -> None:
        """Create a collection, unless one of such vectors is there."""
        vectors = {}
        for field in schema:
            if pa.types.is_fixed_size_list(field.type):
                if field.type.value_type not in DATATYPES:
                    raise OptionError(
                        "Qdrant makes its own int8 and binary vectors; use --precision float32 "
                        "or float16, and its quantization"
                    )
                vectors[field.name] = VectorParams(
                    size=field.type.list_size,
                    distance=Distance.COSINE,
                    datatype=DATATYPES[field.type.value_type],
                )
        name = self._collection + part
        with self._client() as client:
            if not client.collection_exists(name):
                client.create_collection(name, vectors_config=vectors)
            found = client.get_collection(name).config.params.vectors or {}
        sizes = {x: y.size for x, y in found.items()} if isinstance(found, dict) else {}
        if sizes != {x: y.size for x, y in vectors.items()}:
            raise OptionError(
                f"the collection {name!r} has other vectors ({sizes or 'without a name'}); "
                "name another collection"
            )

    def upsert(self, part: str, table: pa.Table, key: str) -> None:
        """Write points over those with the same id."""
        lists = [x.name for x in table.schema if pa.types.is_fixed_size_list(x.type)]
        points = [
            PointStruct(
                id=point_id(row[key]),
                vector={name: row[name] for name in lists if row[name] is not None},
                payload={name: plain(value) for name, value in row.items() if name not in lists},
            )
            for row in table.to_pylist()
        ]
        with self._client() as client:
            for start in range(0, len(points), POINTS):
                some = points[start : start + POINTS]
                client.upsert(self._collection + part, some, wait=True)

    def rows(self, part: str) -> list[dict[str, Any]]:
        """Return the payloads of all points, or none if there is no collection."""
        name, offset = self._collection + part, None
        found: list[dict[str, Any]] = []
        with self._client() as client:
            if not client.collection_exists(name):
                return []
            while True:
                points, offset = client.scroll(name, limit=1000, offset=offset)
                found += [point.payload or {} for point in points]
                if offset is None:
                    return found

    def count(self, job: str) -> int:
        """Return how many points of a job the collection holds."""
        of_job = Filter(must=[FieldCondition(key=JOB, match=MatchValue(value=job))])
        with self._client() as client:
            return client.count(self._collection, count_filter=of_job, exact=True).count

    @property
    def _collection(self) -> str:
        parts = urlsplit(self.url)
        named = parse_qs(parts.query).get("collection", [""])[0]
        name = named or (parts.path.strip("/") if parts.netloc else "")
        if not name:
            raise OptionError(
                f"{self.url!r} names no collection; write qdrant://host:6333/NAME or "
                "qdrant:///folder?collection=NAME"
            )
        return name

    @contextmanager
    def _client(self) -> Iterator[QdrantClient]:
        """Open it for one piece of work: one process at a time can have a local folder open."""
        parts = urlsplit(self.url)
        if parts.netloc:
            scheme = "https" if parts.scheme.endswith("s") else "http"
            url, api_key = f"{scheme}://{parts.netloc}", os.environ.get(API_KEY)
            made = QdrantClient(
                url=url, api_key=api_key, timeout=60, check_compatibility=False
            )  # that check would be a thread of its own, for each block
            with closing(made) as client:
                yield client
        else:
            with alone_in(parts.path), closing(QdrantClient(path=parts.path)) as client:
                yield client


@contextmanager
def alone_in(path: str) -> Iterator[None]:
    """Wait until no other process of a job has a local folder open; a kill ends its turn too."""
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, ".bulk-lock"), "w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def point_id(key: int | str) -> int | str:
    """Return the id of a point: Qdrant takes whole numbers from 0, and UUIDs."""
    if isinstance(key, int) and key >= 0:
        return key
    return str(uuid.uuid5(uuid.NAMESPACE_OID, str(key)))
