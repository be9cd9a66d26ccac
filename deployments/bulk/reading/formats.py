"""The kinds of files, and the module that looks at one (`look`) and reads its rows (`rows`)."""

import csv
import lzma
import tarfile
import zlib

import pyarrow as pa

from deployments.bulk.reading import columnar, csv_files, json_files, tars
from deployments.bulk.reading.files import IMAGE_SUFFIXES
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
MODULES = {
    **dict.fromkeys((*columnar.FORMATS, "lance"), columnar),
    **{"jsonl": json_files, "json": json_files, "csv": csv_files, "tar": tars},
}
UNREADABLE = (
    *(OSError, EOFError, ValueError, OptionError, pa.ArrowException),
    *(tarfile.TarError, csv.Error, lzma.LZMAError, zlib.error),
)
