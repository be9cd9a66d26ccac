"""Local folders and s3:// prefixes as one kind of place, through Arrow's file systems."""

import fnmatch
import os
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
from pyarrow import fs

from deployments.model.errors import OptionError

S3 = "s3://"
WILDCARDS = "*?["


@dataclass(frozen=True)
class File:
    """One file of the input.

    Attributes:
        url: a local path or an s3:// URL.
        size_bytes: its size when it was listed.
    """

    url: str
    size_bytes: int


def split(url: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a local path or s3:// URL, and the path in it."""
    if url.startswith(S3):
        found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(url)
        return found
    return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(url))


def folder_of(url: str) -> str:
    """Return the folder that a file, folder or glob lies in, or is."""
    if any(x in url for x in WILDCARDS):
        head = url[: min(url.index(x) for x in WILDCARDS if x in url)]
        return head.rpartition("/")[0] or "."
    system, path = split(url)
    if system.get_file_info(path).type == fs.FileType.Directory:
        return url
    return url.rpartition("/")[0] or "."


def find_files(url: str) -> list[File]:
    """Return the file, the files of a folder and its subfolders, or those of a glob, sorted.

    Hidden files and those whose name begins with an underscore are left out.

    Raises:
        OptionError: there are none.
    """
    try:
        system, path = split(url)
        files = _list(system, path)
    except OSError as error:
        raise OptionError(f"the input {url!r} cannot be read: {error}") from error
    if not files:
        raise OptionError(f"the input {url!r} has no files")
    prefix = S3 if url.startswith(S3) else ""
    return [File(prefix + info.path, info.size) for info in files]


def _list(system: fs.FileSystem, path: str) -> list[fs.FileInfo]:
    """List without a glob's wildcards first, then filter by them."""
    has_wildcards = any(x in path for x in WILDCARDS)
    info = system.get_file_info(folder_of_path(path) if has_wildcards else path)
    if info.type == fs.FileType.File:
        return [info]
    if info.type != fs.FileType.Directory:
        return []
    below = system.get_file_info(fs.FileSelector(info.path, recursive=True))
    shown = [x for x in below if x.type == fs.FileType.File and not _hidden(x.path, info.path)]
    if has_wildcards:
        shown = [x for x in shown if fnmatch.fnmatchcase(x.path, path)]
    return sorted(shown, key=lambda x: x.path)


def folder_of_path(path: str) -> str:
    """Return the part of a glob before its first wildcard, up to the last slash."""
    return path[: min(path.index(x) for x in WILDCARDS if x in path)].rpartition("/")[0]


def _hidden(path: str, folder: str) -> bool:
    parts = path.removeprefix(folder).split("/")
    return any(part.startswith((".", "_")) for part in parts)


def open_input(url: str) -> BinaryIO:
    """Open a file for reading at any place."""
    system, path = split(url)
    file: BinaryIO = system.open_input_file(path)
    return file


def read_range(url: str, start: int, stop: int) -> bytes:
    """Return the bytes of a part of a file."""
    with open_input(url) as file:
        file.seek(start)
        return file.read(stop - start)


def write_bytes(url: str, data: bytes | pa.Buffer) -> None:
    """Write a file whole or not at all: through a rename, or by S3's own atomic upload."""
    system, path = split(url)
    is_local = isinstance(system, fs.LocalFileSystem)
    target = (
        f"{os.path.dirname(path)}/.{os.path.basename(path)}.{os.getpid()}" if is_local else path
    )
    with system.open_output_stream(target) as stream:
        stream.write(data)
    if is_local:
        system.move(target, path)
