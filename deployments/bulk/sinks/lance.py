"""Lance: a folder or object-store URL that ends in `.lance`, or begins with `lance://`."""

from typing import Any

import lance
import pyarrow as pa

from deployments.bulk.reading.tables import ROW
from deployments.bulk.sinks.store import JOB, Store, check_columns, not_earlier

SUFFIX = ".lance"
# Lance refuses two commits that add the same key, and one of them has to be tried again.
UNIQUE = {"lance-schema:unenforced-primary-key": "true"}
CONFLICT_RETRIES = 20


class Lance(Store):
    """A Lance data set at a local path or a URL of an object store.

    Ray Data's own writer for Lance commits once, at the end: a job that is killed would start anew.
    """

    transient = (OSError,)

    def create(self, part: str, schema: pa.Schema, key: str) -> None:
        """Create a data set, unless one with these columns is there."""
        if (there := self._open(part)) is None:
            place = schema.get_field_index(key)
            schema = schema.set(place, schema.field(place).with_metadata(UNIQUE))
            lance.write_dataset(schema.empty_table(), self._place(part), schema=schema)
        else:
            kinds = dict(zip(there.schema.names, there.schema.types, strict=True))
            check_columns(self.shown, [x.name for x in schema if kinds.get(x.name) != x.type])

    def upsert(self, part: str, table: pa.Table, key: str) -> None:
        """Write rows over those with the same key in one commit."""
        condition = not_earlier("target", "source") if ROW in table.column_names else None
        merge = lance.dataset(self._place(part)).merge_insert(key)
        merge = merge.when_matched_update_all(condition).when_not_matched_insert_all()
        merge.conflict_retries(CONFLICT_RETRIES).execute(table)

    def rows(self, part: str) -> list[dict[str, Any]]:
        """Return all rows, or none if the data set is not there."""
        there = self._open(part)
        return [] if there is None else there.to_table().to_pylist()

    def count(self, job: str) -> int:
        """Return how many rows of a job the data set holds."""
        return int(lance.dataset(self._place("")).count_rows(filter=f"{JOB} = '{job}'"))

    def _open(self, part: str) -> lance.LanceDataset | None:
        try:
            return lance.dataset(self._place(part))
        except (ValueError, FileNotFoundError):  # what it raises where there is none
            return None

    def _place(self, part: str) -> str:
        return self.url.rstrip("/").removesuffix(SUFFIX) + part + SUFFIX
