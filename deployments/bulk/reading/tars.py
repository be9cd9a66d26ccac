"""WebDataset tars: which members are a sample, and where they lie.

Members of one name up to the first dot of the file's name are a sample, wherever they lie.
"""

import os
import posixpath
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

from deployments.bulk.reading.files import CHUNK_BYTES, File, open_input, open_unpacked
from deployments.bulk.reading.lines import Record, decode

KEY, TEXT, IMAGE, JSON = "key", "text", "image", "json"
TEXT_ENDS = ("txt", "text", "caption")
IMAGE_ENDS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "ico", "ppm")


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


def read(file: BinaryIO, sample: Sample) -> tuple[Record, str | None]:
    """Return a sample's members by their extensions, and its text, image and JSON under one name.

    Several images are an error unless one of them is asked for by its extension.
    """
    record: Record = {KEY: sample.key}
    faults = []
    for extension, place in sample.members.items():
        if isinstance(place, str):
            faults.append(f"{extension}: {place}")
            continue
        file.seek(place[0])
        value = file.read(place[1])
        end = extension.rpartition(".")[2]
        record[extension] = value if end in IMAGE_ENDS else decode(value)
    for name, ends in ((TEXT, TEXT_ENDS), (IMAGE, IMAGE_ENDS), (JSON, ("json",))):
        found = [x for x in record if x.rpartition(".")[2] in ends and x != name]
        if len(found) == 1:
            record[name] = record[found[0]]
        elif found:
            record[name] = Several(name, found)
    return record, "; ".join(faults) or None


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
