"""WebDataset tars: which members are a sample, and where they lie.

Members of one name up to the first dot of the file's name are a sample, wherever they lie.
"""

import os
import posixpath
import shutil
import tarfile
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

from deployments.bulk.prepare import IMAGE_SUFFIXES
from deployments.bulk.reading.files import CHUNK_BYTES, File, open_input, open_unpacked
from deployments.bulk.reading.lines import Record, decode

KEY, TEXT, IMAGE, JSON = "key", "text", "image", "json"
TEXT_ENDS = ("txt", "text", "caption")
IMAGE_ENDS = tuple(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
KINDS = {TEXT: TEXT_ENDS, IMAGE: IMAGE_ENDS, JSON: ("json",)}


@dataclass(frozen=True)
class Sample:
    """The members of one key: place and size of each by its extension, or why there is none."""

    key: str
    members: dict[str, tuple[int, int] | str]


def open_tar(url: str) -> BinaryIO:
    """Open a tar for reading at any place; a packed one is unpacked into a file without a name."""
    if not File(url, 0).is_packed:
        return open_input(url)
    copy = tempfile.TemporaryFile()  # noqa: SIM115  # the caller closes it
    with open_unpacked(url) as source:
        shutil.copyfileobj(source, copy, CHUNK_BYTES)
    return copy


def split_name(name: str) -> tuple[str, str]:
    """Return the key of a member and its extension."""
    path = PurePosixPath(name)
    base, _, extension = path.name.partition(".")
    return str(path.with_name(base)) if base else name, extension.lower()


def samples_of(file: BinaryIO) -> tuple[list[Sample], str]:
    """Return the samples of a tar in the order of their first members, and what is wrong with it.

    Hidden members, as macOS makes them, are none. Links are the members that they name.
    """
    samples: dict[str, Sample] = {}
    places: dict[str, tuple[int, int]] = {}
    fault = ""
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # it keeps them all otherwise
                name = posixpath.normpath(member.name)
                if member.isfile():
                    places[name] = member.offset_data, member.size
                if not (member.isfile() or member.islnk() or member.issym()) or _hidden(name):
                    continue
                key, extension = split_name(name)
                place: tuple[int, int] | str = places.get(name, "")
                if member.islnk() or member.issym():
                    folder = "" if member.islnk() else posixpath.dirname(name)
                    place = posixpath.normpath(posixpath.join(folder, member.linkname))
                samples.setdefault(key, Sample(key, {})).members[extension] = place
    except (tarfile.TarError, OSError, EOFError) as error:
        fault = str(error) or type(error).__name__
    size = file.seek(0, os.SEEK_END)
    for sample in samples.values():
        for extension, place in sample.members.items():
            found = place
            if isinstance(place, str):
                found = places.get(place, f"it links to {place!r}, which the tar lacks")
            if not isinstance(found, str) and sum(found) > size:
                fault = fault or "it is cut off"
                found = "the tar is cut off within it"
            sample.members[extension] = found
    return list(samples.values()), fault or ("" if samples or not size else "it has no members")


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def read(file: BinaryIO, sample: Sample, wanted: Collection[str]) -> tuple[Record, str | None]:
    """Return those columns of a sample that are wanted; others are not read.

    A column is a member by its extension, or the only text, image or JSON under that name.
    """
    record: Record = {KEY: sample.key}
    faults = []
    for name in wanted:
        found = [name] if name in sample.members else _members(sample, name)
        if len(found) > 1:
            record[name] = Several(name, found)
        for extension in found if len(found) == 1 else ():
            place = sample.members[extension]
            if isinstance(place, str):
                faults.append(f"{extension}: {place}")
                continue
            file.seek(place[0])
            value = file.read(place[1])
            record[name] = value if _end(extension) in IMAGE_ENDS else decode(value)
    return record, "; ".join(faults) or None


def _members(sample: Sample, name: str) -> list[str]:
    """Return the extensions of a sample's texts, images or JSON."""
    return [extension for extension in sample.members if _end(extension) in KINDS.get(name, ())]


def _end(extension: str) -> str:
    return extension.rpartition(".")[2]


@dataclass(frozen=True)
class Several:
    """Members of a sample that could all be meant."""

    name: str
    extensions: list[str]

    def __str__(self) -> str:
        found = ", ".join(self.extensions)
        return (
            f"the sample has {len(self.extensions)} of them ({found}); name one by --{self.name}, "
            "or rename: a key ends at the first dot of the file's name"
        )
