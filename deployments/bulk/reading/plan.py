"""What is known of an input before its rows are read: parts that are looked at, blocks, columns."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa

Fields = Mapping[str, pa.DataType]


class Part(NamedTuple):
    """A file, or the lines of it that begin from the byte `start` to before `stop`."""

    url: str
    kind: str
    start: int = 0
    stop: float = math.inf


@dataclass
class Look:
    """What was found in a part."""

    num_rows: int = 0
    starts: Sequence[int] = ()  # of blocks: a row of the file, or a byte of its text once unpacked
    types: Fields = field(default_factory=dict)
    fault: str = ""  # why some or all of its rows cannot be had; empty where they can


@dataclass(frozen=True)
class RowBlock:
    """Rows that are read, embedded and written together."""

    number: int  # among the blocks, from 0
    kind: str
    paths: tuple[str, ...]  # the file; for images, one file for each row
    start: int  # as in `Look`
    num_rows: int
    first_row: int  # rows of the input before it


@dataclass(frozen=True)
class Plan:
    """All blocks of a job, in the order of their rows, and what identifies its input."""

    blocks: tuple[RowBlock, ...]
    types: Fields  # of the columns, from all of the input
    fingerprint: str  # of the files, and how they are cut
    lost: dict[str, str]  # files whose rows are not in the blocks, or not all, and why

    @property
    def num_rows(self) -> int:
        """Rows of the input."""
        return sum(block.num_rows for block in self.blocks)

    @property
    def kinds(self) -> set[str]:
        """What kinds of files it has."""
        return {block.kind for block in self.blocks}
