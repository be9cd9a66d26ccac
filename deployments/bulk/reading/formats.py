"""Which module looks at a kind of file and reads its rows."""

import csv
import tarfile
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from deployments.bulk.prepare import IMAGE_SUFFIXES
from deployments.bulk.reading import columnar, csv_files, json_files, tars
from deployments.bulk.reading.files import partitions, suffixes
from deployments.bulk.reading.plan import Fields, Look, Part, RowBlock
from deployments.bulk.reading.types import TEXT
from deployments.model.errors import OptionError

KINDS = {
    ".parquet": "parquet",
    ".orc": "orc",
    ".feather": "feather",
    ".arrow": "feather",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".tar": "tar",
    **dict.fromkeys(IMAGE_SUFFIXES, "images"),
}
COLUMNAR = (*columnar.FORMATS, "lance")
MODULES = dict.fromkeys(COLUMNAR, columnar) | {
    **{"jsonl": json_files, "json": json_files},
    **{"csv": csv_files, "tar": tars},
}
UNREADABLE = (
    *(OSError, EOFError, ValueError, OptionError, pa.ArrowException),
    *(tarfile.TarError, csv.Error),
)


def kind_of(path: str) -> str:
    """Return the kind of a file by its name, or nothing."""
    return KINDS.get(suffixes(path)[0], "")


def look(part: Part, block_rows: int) -> Look:
    """Look at a part of the input; a file that cannot be read is one fault."""
    try:
        found: Look = MODULES[part.kind].look(part, block_rows)
    except UNREADABLE as error:
        return Look(fault=f"it cannot be read: {error}")
    if found.num_rows:
        found.types = {**dict.fromkeys(partitions(part.url), TEXT), **found.types}
    return found


def open_rows(block: RowBlock, names: Fields) -> Iterator[Any]:
    """Yield what is in a file from a block on: tables of as many rows as it has, or rows."""
    found: Iterator[Any] = MODULES[block.kind].rows(block, names)
    return found
