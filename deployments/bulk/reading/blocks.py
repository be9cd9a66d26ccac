"""The input cut into blocks of rows: the unit of work, of output and of resuming.

Cutting depends on the input and the number of rows alone, so that a resumed job cuts alike. Files
are looked at in Ray tasks; the driver sees where rows lie and their types, never the rows.
"""

import fnmatch
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import ray

from deployments.bulk.prepare import IMAGE_SUFFIXES
from deployments.bulk.reading.files import (
    UTF16_MARKS,
    find_files,
    is_folder,
    open_input,
    shown,
    suffixes,
)
from deployments.bulk.reading.looking import Look, Part, lance_version, look
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
    **dict.fromkeys(IMAGE_SUFFIXES, "images"),
}
SIDE_FILES = ("*.crc", "*.md5", "*.sha256", "*.md", "LICENSE*", "*.yaml")  # that hold no rows
PART_BYTES = 128 * 1024 * 1024  # of lines of JSON that one task looks at
SMALL_BYTES, FEW_FILES = 4 * 1024 * 1024, 32  # looked at here, in less time than a task takes
SHOWN_FAULTS = 3


@dataclass(frozen=True)
class RowBlock:
    """Rows that are read, embedded and written together.

    Attributes:
        number: place among the blocks, from 0.
        kind: one of the values of `KINDS`, or `lance`.
        paths: the file; for images, one file for each row.
        start: first row of the file, or first byte of text once it is unpacked.
        num_rows: rows of the block.
        first_row: rows of the input before it.
    """

    number: int
    kind: str
    paths: tuple[str, ...]
    start: int
    num_rows: int
    first_row: int


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
    passed = (*ignored, *SIDE_FILES)
    if is_folder(f"{url.rstrip('/')}/_versions"):
        files = {lance_version(url): 0}
        kinds = dict.fromkeys(files, "lance")
    else:
        files = {path: size for path, size in find_files(url).items() if not _matches(path, passed)}
        kinds = {path: KINDS.get(suffixes(path)[0], "") for path in files}
    lost = {path: "no known kind of file" for path, kind in kinds.items() if not kind}
    tables = [path for path, kind in kinds.items() if kind not in ("", "images")]
    images = [path for path, kind in kinds.items() if kind == "images"]
    if tables:
        _refuse_tables(url, files)
        lost |= dict.fromkeys(images, "an image beside tables, which name theirs")
        images = []
    looks = look_at(
        [x for path in tables for x in _parts(path, kinds[path], files[path])], block_rows
    )
    lost |= {part.url: found.fault for part, found in looks if found.fault}
    found: list[tuple[str, tuple[str, ...], int, int]] = [
        (found.kind or part.kind, (part.url,), start, count)
        for part, found in looks
        for start, count in found.spans
    ]
    for start in range(0, len(images), block_rows):
        some = tuple(images[start : start + block_rows])
        found.append(("images", some, 0, len(some)))
    if not found:
        raise OptionError(_nothing(url, lost))
    first_rows = itertools.accumulate((count for *_, count in found), initial=0)
    blocks = [RowBlock(i, *x, next(first_rows)) for i, x in enumerate(found)]
    digest = hashlib.sha256(repr((block_rows, *files.items())).encode("utf-8", "surrogateescape"))
    types = merged(found.types for _, found in looks)
    return Plan(tuple(blocks), types, digest.hexdigest(), {shown(x): lost[x] for x in lost})


def look_at(parts: Sequence[Part], block_rows: int) -> list[tuple[Part, Look]]:
    """Look at files in parallel, on the Ray that runs."""
    size_bytes = sum(part.size_bytes for part in parts)
    if not ray.is_initialized() or (size_bytes < SMALL_BYTES and len(parts) < FEW_FILES):
        return _look_at_some(parts, block_rows)
    tasks = max(1, int(ray.cluster_resources().get("CPU", 1)))
    # No CPUs are asked for: stages of another job may hold them all.
    several = ray.remote(num_cpus=0, scheduling_strategy="SPREAD")(_look_at_some)
    found = ray.get([several.remote(parts[i::tasks], block_rows) for i in range(tasks)])
    return [found[i % tasks][i // tasks] for i in range(len(parts))]


def _look_at_some(parts: Sequence[Part], block_rows: int) -> list[tuple[Part, Look]]:
    return [(part, look(part, block_rows)) for part in parts]


def _parts(path: str, kind: str, size_bytes: int) -> list[Part]:
    """Cut a large file of lines, which can be looked at anywhere, into parts."""
    if kind == "jsonl" and not suffixes(path)[1] and size_bytes > PART_BYTES:
        with open_input(path) as source:
            is_utf8 = source.read(2) not in UTF16_MARKS
        if is_utf8:
            starts = range(0, size_bytes, PART_BYTES)
            return [Part(path, kind, PART_BYTES, x, x + PART_BYTES) for x in starts]
    return [Part(path, kind, size_bytes)]


def _matches(path: str, patterns: Sequence[str]) -> bool:
    name = path.rpartition("/")[2]
    return any(fnmatch.fnmatchcase(name, x) or path == x for x in patterns)


def _refuse_tables(url: str, files: Iterable[str]) -> None:
    """Refuse folders whose files are not all current: their table says which ones are."""
    name = "delta" if is_folder(f"{url.rstrip('/')}/_delta_log") else ""
    if name or any(path.endswith(".metadata.json") for path in files):
        name = name or "iceberg"
        raise OptionError(
            f"the input {url!r} is a {name} table; read it in Python by ray.data.read_{name} "
            "and embed that dataset by deployments.bulk.embed"
        )


def _nothing(url: str, lost: dict[str, str]) -> str:
    """Say why there are no rows: of files that cannot be read the first three, and what can be."""
    if not lost:
        return f"the input {url!r} has no rows"
    faults = "; ".join(f"{shown(path)}: {lost[path]}" for path in list(lost)[:SHOWN_FAULTS])
    more = f", and {len(lost) - SHOWN_FAULTS:,} more files" if len(lost) > SHOWN_FAULTS else ""
    known = " ".join(KINDS)
    return f"the input {url!r} has no rows that can be read: {faults}{more} (known are {known})"
