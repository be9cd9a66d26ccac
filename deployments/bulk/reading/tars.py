"""WebDataset tars: members of one name up to its first dot are a sample, wherever they lie."""

import itertools
import os
import posixpath
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import BinaryIO

import pyarrow as pa

from deployments.bulk.reading.files import (
    CHUNK_BYTES,
    IMAGE_SUFFIXES,
    decode,
    open_input,
    open_unpacked,
    suffixes,
)
from deployments.bulk.reading.plan import Fields, Look, Part, RowBlock
from deployments.bulk.reading.types import TEXT as TEXT_TYPE
from deployments.bulk.reading.types import ParsedRow, Record

KEY, TEXT, IMAGE, JSON = "key", "text", "image", "json"
IMAGE_ENDS = tuple(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
KINDS = {TEXT: ("txt", "text", "caption"), IMAGE: IMAGE_ENDS, JSON: ("json",)}
HIDDEN = re.compile(r"\.(?!\.$)|__MACOSX$")

Place = tuple[int, int] | str
"""Where a member begins and its size, or why it cannot be read."""
Samples = dict[str, dict[str, Place]]
"""The members of each key by their extensions."""


def look(part: Part, block_rows: int) -> Look:
    """Look at the headers of all members."""
    with _open(part.url) as file:
        samples, fault = _samples(file)
    found = sorted({extension for members in samples.values() for extension in members})
    types = dict.fromkeys((KEY, TEXT, JSON, *found), TEXT_TYPE)
    if images := [extension for extension in found if _end(extension) in IMAGE_ENDS]:
        types |= dict.fromkeys((IMAGE, *images), pa.large_binary())
    return Look(len(samples), range(0, len(samples), block_rows), types, fault)


def rows(block: RowBlock, names: Fields) -> Iterator[Callable[[], ParsedRow]]:
    """Yield what reads each sample of a tar from a block on; members that no name means are not."""
    with _open(block.paths[0]) as file:
        samples, _ = _samples(file)
        for key, members in itertools.islice(samples.items(), block.start, None):
            yield partial(_row, file, key, members, names)


def _open(url: str) -> BinaryIO:
    """Open a tar for reading at any place; a packed one is unpacked into a file without a name."""
    if not suffixes(url)[1]:
        return open_input(url)
    copy = tempfile.TemporaryFile()  # noqa: SIM115  # the caller closes it
    with open_unpacked(url) as source:
        shutil.copyfileobj(source, copy, CHUNK_BYTES)
    copy.seek(0)
    return copy


def _samples(file: BinaryIO) -> tuple[Samples, str]:
    """Return the samples of a tar in the order of their first members, and what is wrong with it.

    Hidden members, as macOS makes them, are none. Links are the members that they name.
    """
    samples: Samples = {}
    places: dict[str, tuple[int, int]] = {}
    fault = ""
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # it keeps them all otherwise
                name = posixpath.normpath(member.name)
                target = member.linkname
                if member.isfile():
                    places[name] = member.offset_data, member.size
                    target = name
                elif member.issym():
                    target = posixpath.join(posixpath.dirname(name), target)
                elif not member.islnk():
                    continue
                path = PurePosixPath(name)
                if any(HIDDEN.match(part) for part in path.parts):
                    continue
                base, _, extension = path.name.partition(".")
                members = samples.setdefault(str(path.with_name(base)), {})
                members[extension.lower()] = posixpath.normpath(target)
            fault = _behind(file, archive.offset)
    except (tarfile.TarError, OSError, EOFError) as error:
        fault = str(error) or type(error).__name__
    size = file.seek(0, os.SEEK_END)
    for members in samples.values():
        for extension, meant in members.items():
            place = places.get(str(meant)) or f"it links to {meant!r}, which the tar lacks"
            if not isinstance(place, str) and sum(place) > size:
                place = "the tar is cut off within it"
                fault = fault or "it is cut off"
            members[extension] = place
    return samples, fault or ("" if samples or not size else "it has no members")


def _behind(file: BinaryIO, end: int) -> str:
    """Say what is wrong where Python's reader saw the end of a tar: zeros should be there alone."""
    file.seek(end)
    if len(file.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
        return "it is cut off"
    file.seek(end)
    if all(not part.strip(b"\0") for part in iter(lambda: file.read(CHUNK_BYTES), b"")):
        return ""
    return f"what follows its byte {end:,} is no member; a tar behind another is not read"


def _row(file: BinaryIO, key: str, members: dict[str, Place], names: Fields) -> ParsedRow:
    """Return a sample: a column is a member by its extension, or the only one of that kind."""
    record: Record = {}
    faults = []
    for name in names:
        ends = KINDS.get(name, ())
        found = [name] if name in members else [x for x in members if _end(x) in ends]
        if len(found) > 1:
            faults.append(
                f"{name}: the sample has {len(found)} of them ({', '.join(found)}); name one by "
                f"--{name}, or rename: a key ends at the first dot of the file's name"
            )
            continue
        place = members[found[0]] if found else None
        if isinstance(place, str):
            faults.append(f"{found[0]}: {place}")
        elif place is not None:
            file.seek(place[0])
            value = file.read(place[1])
            record[name] = value if _end(found[0]) in IMAGE_ENDS else decode(value)
    return {**record, KEY: key}, "; ".join(faults) or None


def _end(extension: str) -> str:
    return extension.rpartition(".")[2]
