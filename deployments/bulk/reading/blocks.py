"""The input cut into blocks of rows: the unit of work, of output and of resuming.

Cutting depends on the input and the number of rows alone, so that a resumed job cuts alike. Files
are looked at in Ray tasks; the driver sees where rows lie and their types, never the rows.
"""

import fnmatch
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import ray

from deployments.bulk.prepare import IMAGE_SUFFIXES
from deployments.bulk.reading.files import (
    UTF16_MARKS,
    File,
    find_files,
    is_folder,
    open_input,
    shown,
)
from deployments.bulk.reading.looking import Look, Part, Span, look
from deployments.bulk.reading.types import Fields, merged
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
    ".tgz": "tar",
}
SIDE_FILES = ("*.crc", "*.md5", "*.sha256", "*.md", "LICENSE*", "*.yaml")  # that hold no rows
ICEBERG = ".metadata.json"  # ends the names of what says which files are of a table
TABLE_FORMATS = {"_delta_log": "delta", "_versions": "lance"}  # by a folder that each has
PART_BYTES = 128 * 1024 * 1024  # of lines of JSON that one task looks at
SMALL_BYTES, FEW_FILES = 4 * 1024 * 1024, 32  # looked at here, in less time than a task takes


@dataclass(frozen=True)
class RowBlock:
    """Rows that are read, embedded and written together.

    Attributes:
        number: place among the blocks, from 0.
        kind: one of the values of `KINDS`, or `images`.
        paths: the file; for images, one file for each row.
        start: first row of the file, or first byte of text once it is unpacked.
        num_rows: rows of the block.
        first_row: rows of the input before it.
        header: names of the columns of a CSV file.
        delimiter: between its fields.
    """

    number: int
    kind: str
    paths: tuple[str, ...]
    start: int
    num_rows: int
    first_row: int
    header: tuple[str, ...] = ()
    delimiter: str = ""


@dataclass(frozen=True)
class Plan:
    """All blocks of a job, and what identifies its input.

    Attributes:
        blocks: in the order of their rows.
        types: of the columns, from all of the input.
        fingerprint: of the files and how they are cut.
        lost: files of the input whose rows are not in the blocks, or not all, and why.
    """

    blocks: tuple[RowBlock, ...]
    types: Fields
    fingerprint: str
    lost: dict[str, str]

    @property
    def num_rows(self) -> int:
        """Rows of the input."""
        return sum(block.num_rows for block in self.blocks)

    @property
    def kinds(self) -> set[str]:
        """What kinds of files it has."""
        return {block.kind for block in self.blocks}


def cut_input(url: str, block_rows: int, ignored: Sequence[str] = ()) -> Plan:
    """List the input and cut it into blocks of at most `block_rows` rows.

    Args:
        url: file, folder or glob.
        block_rows: most rows of a block.
        ignored: patterns of names of files that are no input.

    Raises:
        OptionError: nothing is there, or nothing that can be read.
    """
    files = [file for file in find_files(url) if not _matches(file, (*ignored, *SIDE_FILES))]
    kinds = {file: _kind(file) for file in files}
    lost = {file.url: "no known kind of file" for file in files if not kinds[file]}
    tables = [file for file in files if kinds[file] not in ("", "images")]
    images = [file for file in files if kinds[file] == "images"]
    if tables:
        _refuse_table_formats(url, files)
        lost |= {file.url: "an image beside tables, which name theirs" for file in images}
    blocks: list[RowBlock] = []
    first_row = 0

    def add(kind: str, paths: tuple[str, ...], found: Look, span: Span) -> None:
        nonlocal first_row
        place = len(blocks), kind, paths, span.start, span.num_rows, first_row
        blocks.append(RowBlock(*place, found.header, found.delimiter))
        first_row += span.num_rows

    looks = look_at([part for file in tables for part in _parts(file, kinds[file])], block_rows)
    for part, found in looks:
        for span in found.spans:
            add(found.kind or part.kind, (part.url,), found, span)
        if found.fault:
            lost[part.url] = found.fault
    paths = [] if tables else [file.url for file in images]
    for start in range(0, len(paths), block_rows):
        few = tuple(paths[start : start + block_rows])
        add("images", few, Look(), Span(0, len(few)))
    if not blocks:
        raise OptionError(_nothing(url, lost))
    digest = hashlib.sha256(repr((block_rows, files)).encode("utf-8", "surrogateescape"))
    types = merged(found.types for _, found in looks)
    return Plan(tuple(blocks), types, digest.hexdigest(), {shown(x): lost[x] for x in lost})


def look_at(parts: Sequence[Part], block_rows: int) -> list[tuple[Part, Look]]:
    """Look at files in parallel, on the Ray that runs."""
    size_bytes = sum(part.size_bytes for part in parts)
    if not ray.is_initialized() or (size_bytes < SMALL_BYTES and len(parts) < FEW_FILES):
        return [(part, look(part, block_rows)) for part in parts]
    tasks = max(1, int(ray.cluster_resources().get("CPU", 1)))
    # No CPUs are asked for: stages of another job may hold them all.
    several = ray.remote(num_cpus=0, scheduling_strategy="SPREAD")(_look_at_some)
    found = ray.get([several.remote(parts[i::tasks], block_rows) for i in range(tasks)])
    looks: list[Look] = [Look()] * len(parts)
    for i, some in enumerate(found):
        looks[i::tasks] = some
    return list(zip(parts, looks, strict=True))


def _look_at_some(parts: Sequence[Part], block_rows: int) -> list[Look]:
    return [look(part, block_rows) for part in parts]


def _parts(file: File, kind: str) -> Iterable[Part]:
    """Cut a large file of lines, which can be looked at anywhere, into parts."""
    if kind != "jsonl" or file.is_packed or file.size_bytes <= PART_BYTES:
        return [Part(file.url, kind, 0, None, file.size_bytes)]
    with open_input(file.url) as source:
        if source.read(2) in UTF16_MARKS:
            return [Part(file.url, kind, 0, None, file.size_bytes)]
    starts = range(0, file.size_bytes, PART_BYTES)
    return [Part(file.url, kind, x, x + PART_BYTES, PART_BYTES) for x in starts]


def _kind(file: File) -> str:
    return KINDS.get(file.suffix, "images" if file.suffix in IMAGE_SUFFIXES else "")


def _matches(file: File, patterns: Sequence[str]) -> bool:
    name = file.url.rpartition("/")[2]
    return any(fnmatch.fnmatchcase(name, x) or file.url == x for x in patterns)


def _refuse_table_formats(url: str, files: Sequence[File]) -> None:
    """Refuse folders whose files are not all current: their table says which ones are."""
    found = [name for x, name in TABLE_FORMATS.items() if is_folder(f"{url.rstrip('/')}/{x}")]
    if any(file.url.endswith(ICEBERG) for file in files):
        found.append("iceberg")
    for name in found:
        raise OptionError(
            f"the input {url!r} is a {name} table; read it in Python by ray.data.read_{name} "
            "and embed that dataset by deployments.bulk.embed"
        )


def _nothing(url: str, lost: dict[str, str]) -> str:
    """Say why there are no rows: of files that cannot be read the first three, and what can be."""
    if not lost:
        return f"the input {url!r} has no rows"
    faults = "; ".join(f"{shown(path)}: {lost[path]}" for path in list(lost)[:3])
    more = f", and {len(lost) - 3:,} more files" if len(lost) > 3 else ""
    known = " ".join([*KINDS, *IMAGE_SUFFIXES])
    return f"the input {url!r} has no rows that can be read: {faults}{more} (known are {known})"
