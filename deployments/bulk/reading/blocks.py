"""The input cut into blocks of rows: the unit of work, of output and of resuming.

Cutting depends on the input and the number of rows alone, so that a resumed job cuts alike. Files
of lines and tars are read through once to find where their rows lie.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow.parquet as pq

from deployments.bulk.prepare import IMAGE_SUFFIXES
from deployments.bulk.reading import lines, tars
from deployments.bulk.reading.files import File, find_files, open_input
from deployments.model.errors import OptionError

KINDS = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tar": "tar",
} | dict.fromkeys(IMAGE_SUFFIXES, "images")


@dataclass(frozen=True)
class RowBlock:
    """Rows that are read, embedded and written together.

    Attributes:
        number: place among the blocks, from 0.
        kind: one of the values of `KINDS`.
        paths: the file; for images, one file for each row.
        start: first row (parquet) or byte (lines, tars) of the file.
        stop: the row or byte after the last.
        num_rows: rows of the block.
        first_row: rows of the input before it.
        header: names of the columns of a CSV file.
    """

    number: int
    kind: str
    paths: tuple[str, ...]
    start: int
    stop: int
    num_rows: int
    first_row: int
    header: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """All blocks of a job, and what identifies its input."""

    kind: str
    blocks: tuple[RowBlock, ...]
    fingerprint: str

    @property
    def num_rows(self) -> int:
        """Rows of the input."""
        return sum(block.num_rows for block in self.blocks)


@dataclass(frozen=True)
class Span:
    """A run of rows of one file, before it is numbered."""

    paths: tuple[str, ...]
    start: int
    stop: int
    num_rows: int
    header: tuple[str, ...] = ()


def cut_input(url: str, block_rows: int) -> Plan:
    """List the input and cut it into blocks of at most `block_rows` rows.

    Raises:
        OptionError: nothing is there, or files of unknown or several kinds.
    """
    files = find_files(url)
    kind = kind_of(url, files)
    files = [file for file in files if KINDS.get(suffix(file.url)) == kind]
    digest = hashlib.sha256(repr((block_rows, files)).encode()).hexdigest()
    blocks: list[RowBlock] = []
    first_row = 0
    for span in _spans(kind, files, block_rows):
        blocks.append(
            RowBlock(
                len(blocks),
                kind,
                span.paths,
                span.start,
                span.stop,
                span.num_rows,
                first_row,
                span.header,
            )
        )
        first_row += span.num_rows
    if not blocks:
        raise OptionError(f"the input {url!r} has no rows")
    return Plan(kind, tuple(blocks), digest)


def kind_of(url: str, files: list[File]) -> str:
    """Return what kind of input the files are; files of no known kind do not count.

    Raises:
        OptionError: none is known, or there are several kinds.
    """
    kinds = sorted({kind for file in files if (kind := KINDS.get(suffix(file.url)))})
    if len(kinds) != 1:
        found = f"several kinds of files ({', '.join(kinds)})" if kinds else "no known kind of file"
        raise OptionError(
            f"the input {url!r} has {found}; name files of one kind, such as *.jpg "
            f"(known are {' '.join(KINDS)})"
        )
    return kinds[0]


def suffix(url: str) -> str:
    """Return the lower-case end of a file's name, dot included."""
    return PurePosixPath(url).suffix.lower()


def _spans(kind: str, files: list[File], rows: int) -> Iterator[Span]:
    if kind == "images":
        for start in range(0, len(files), rows):
            part = tuple(file.url for file in files[start : start + rows])
            yield Span(part, 0, 0, len(part))
        return
    for file in files:
        paths = (file.url,)
        if kind == "parquet":
            with open_input(file.url) as source:
                total = pq.ParquetFile(source).metadata.num_rows
            for start in range(0, total, rows):
                stop = min(start + rows, total)
                yield Span(paths, start, stop, stop - start)
        elif kind == "tar":
            for start, stop, count in tars.spans(file.url, rows):
                yield Span(paths, start, stop, count)
        else:
            header, body = lines.header(file.url) if kind == "csv" else ((), 0)
            for start, stop, count in lines.spans(file.url, rows, body, quotes=kind == "csv"):
                yield Span(paths, start, stop, count, header)
