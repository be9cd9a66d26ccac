"""WebDataset tars: which members are a sample, and where they lie.

Members of one name up to the first dot of the file's name are a sample, wherever they lie.
"""

import os
import posixpath
import shutil
import tarfile
import tempfile
from collections.abc import Collection
from pathlib import PurePosixPath
from typing import BinaryIO

from deployments.bulk.prepare import IMAGE_SUFFIXES
from deployments.bulk.reading.files import CHUNK_BYTES, open_input, open_unpacked, suffixes
from deployments.bulk.reading.lines import ParsedRow, Record, decode

KEY, TEXT, IMAGE, JSON = "key", "text", "image", "json"
IMAGE_ENDS = tuple(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
KINDS = {TEXT: ("txt", "text", "caption"), IMAGE: IMAGE_ENDS, JSON: ("json",)}

Place = tuple[int, int] | str
"""Where a member begins and its size, or why it cannot be read."""
Samples = dict[str, dict[str, Place]]
"""The members of each key by their extensions."""


def open_tar(url: str) -> BinaryIO:
    """Open a tar for reading at any place; a packed one is unpacked into a file without a name."""
    if not suffixes(url)[1]:
        return open_input(url)
    copy = tempfile.TemporaryFile()  # noqa: SIM115  # the caller closes it
    with open_unpacked(url) as source:
        shutil.copyfileobj(source, copy, CHUNK_BYTES)
    copy.seek(0)
    return copy


def samples_of(file: BinaryIO) -> tuple[Samples, str]:
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
                if any(part.startswith(".") or part == "__MACOSX" for part in path.parts):
                    continue
                base, _, extension = path.name.partition(".")
                members = samples.setdefault(str(path.with_name(base)), {})
                members[extension.lower()] = posixpath.normpath(target)
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


def read(file: BinaryIO, key: str, members: dict[str, Place], wanted: Collection[str]) -> ParsedRow:
    """Return those columns of a sample that are wanted; others are not read.

    A column is a member by its extension, or the only text, image or JSON under that name.
    """
    record: Record = {KEY: key}
    faults = []
    for name in wanted:
        found = (
            [name] if name in members else [x for x in members if _end(x) in KINDS.get(name, ())]
        )
        if len(found) > 1:
            faults.append(
                f"{name}: the sample has {len(found)} of them ({', '.join(found)}); name one by "
                f"--{name}, or rename: a key ends at the first dot of the file's name"
            )
            continue
        for extension in found:
            place = members[extension]
            if isinstance(place, str):
                faults.append(f"{extension}: {place}")
                continue
            file.seek(place[0])
            value = file.read(place[1])
            record[name] = value if is_image(extension) else decode(value)
    return record, "; ".join(faults) or None


def is_image(extension: str) -> bool:
    """Tell whether members of an extension are images."""
    return _end(extension) in IMAGE_ENDS


def _end(extension: str) -> str:
    return extension.rpartition(".")[2]
