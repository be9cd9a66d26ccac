"""Files of the input, local or of a store, and what is in them once it is unpacked."""

import bz2
import codecs
import fnmatch
import gzip
import lzma
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, cast
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from deployments.model.errors import OptionError

S3 = "s3://"
SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://")
WILDCARDS = "*?["
PACKED = {".gz", ".bz2", ".xz", ".zst"}
CHUNK_BYTES = 16 * 1024 * 1024
UTF8_MARK = b"\xef\xbb\xbf"  # written before UTF-8 by some programs
MARK_BYTES = 4  # read at once, so that a mark is seen whole
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class File:
    """One file of the input.

    Attributes:
        url: a local path or the URL of a store.
        size_bytes: its size when it was listed.
    """

    url: str
    size_bytes: int

    @property
    def suffix(self) -> str:
        """The lower-case end of its name, dot included, without that of the packing."""
        path = PurePosixPath(self.url.lower())
        return PurePosixPath(path.stem).suffix if path.suffix in PACKED else path.suffix

    @property
    def is_packed(self) -> bool:
        """Whether it can only be read from its beginning on."""
        return PurePosixPath(self.url.lower()).suffix in PACKED | {".tgz"}


def split(url: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a local path or of a store's URL, and the path in it.

    Raises:
        OptionError: a kind of store that Arrow does not know.
    """
    if SCHEME.match(url):
        try:
            found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(url)
        except (pa.ArrowException, ValueError) as error:
            raise OptionError(f"{url!r} cannot be opened: {error}") from error
        return found
    return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(url))


def find_files(url: str) -> list[File]:
    """Return the file, the files of a folder and its subfolders, or those of a glob, sorted.

    What exists under exactly this name is that file or folder, brackets and all. Hidden files and
    those whose name begins with an underscore are left out, and what lies in such folders.

    Raises:
        OptionError: there are none.
    """
    try:
        files = _list_store(url) if SCHEME.match(url) else _list_local(os.path.expanduser(url))
    except OSError as error:
        raise OptionError(f"the input {url!r} cannot be read: {error}") from error
    if not files:
        raise OptionError(f"the input {url!r} has no files")
    return sorted(files, key=lambda file: file.url)


def folder_of(url: str) -> str:
    """Return the folder that a file, folder or glob lies in, or is."""
    if is_folder(url):
        return url
    if any(x in url for x in WILDCARDS) and not _is_there(url):
        url = _before_wildcard(url)
    return url.rpartition("/")[0] or "."


def is_folder(url: str) -> bool:
    """Tell whether a folder has this name."""
    system, path = split(url)
    if isinstance(system, fs.LocalFileSystem):
        return os.path.isdir(path)
    return bool(system.get_file_info(path).type is fs.FileType.Directory)


def _is_there(url: str) -> bool:
    system, path = split(url)
    if isinstance(system, fs.LocalFileSystem):
        return os.path.exists(path)
    return bool(system.get_file_info(path).type is not fs.FileType.NotFound)


def _before_wildcard(url: str) -> str:
    return url[: min(url.index(x) for x in WILDCARDS if x in url)]


def _list_local(path: str) -> list[File]:
    path = os.path.abspath(path)
    if os.path.isfile(path):
        return [File(path, os.path.getsize(path))]
    is_pattern = not os.path.isdir(path)
    if is_pattern and not any(x in path for x in WILDCARDS):
        return []
    top = path if not is_pattern else os.path.dirname(_before_wildcard(path + "*"))
    files = []
    for folder, folders, names in os.walk(top, followlinks=True):
        folders[:] = [name for name in folders if name[0] not in "._"]
        for name in names:
            found = os.path.join(folder, name)
            wanted = not is_pattern or fnmatch.fnmatchcase(found, path)
            if wanted and name[0] not in "._" and os.path.isfile(found):
                files.append(File(found, os.path.getsize(found)))
    return files


def _list_store(url: str) -> list[File]:
    system, path = split(url)
    info = system.get_file_info(path)
    prefix = url[: url.rindex(path)] if path and path in url else S3
    if info.type is fs.FileType.File:
        return [File(url, info.size)]
    is_pattern = info.type is not fs.FileType.Directory
    top = path if not is_pattern else _before_wildcard(path + "*").rpartition("/")[0]
    selector = fs.FileSelector(top, recursive=True, allow_not_found=True)
    return [
        File(prefix + x.path, x.size)
        for x in system.get_file_info(selector)
        if x.type is fs.FileType.File
        and not any(part[0] in "._" for part in x.path.removeprefix(top).split("/") if part)
        and (not is_pattern or fnmatch.fnmatchcase(x.path, path))
    ]


def open_input(url: str) -> BinaryIO:
    """Open a file for reading at any place, as it is."""
    system, path = split(url)
    if path != shown(path):  # Arrow opens no name that is not UTF-8
        return open(path, "rb")
    file: BinaryIO = system.open_input_file(path)
    return file


def shown(path: str) -> str:
    """Return a path as people and columns can have it; bytes that are not UTF-8 as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def open_unpacked(url: str) -> BinaryIO:
    """Open a file for reading on from its beginning, unpacked by the end of its name."""
    source, end = open_input(url), PurePosixPath(url.lower()).suffix
    if end in (".gz", ".tgz"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=source))
    if end == ".bz2":
        return cast(BinaryIO, bz2.BZ2File(source))
    if end == ".xz":
        return cast(BinaryIO, lzma.LZMAFile(source))
    if end == ".zst":
        return cast(BinaryIO, pa.CompressedInputStream(pa.PythonFile(source), "zstd"))
    return source


def chunks(url: str, start: int) -> Iterator[bytes]:
    """Yield what is in a file of text from a byte on, unpacked and as UTF-8 without its mark.

    Places count the bytes that this yields, from the start of the file.
    """
    with open_unpacked(url) as file:
        data = file.read(max(CHUNK_BYTES, MARK_BYTES))
        if data[:2] in UTF16_MARKS:
            yield from _behind(_transcoded(data, file), start)
            return
        mark = len(UTF8_MARK) if data.startswith(UTF8_MARK) else 0
        if start and not File(url, 0).is_packed:
            file.seek(start + mark)
            start, data = 0, file.read(CHUNK_BYTES)
        else:
            data = data[mark:] or file.read(CHUNK_BYTES)
        yield from _behind(_rest(data, file), start)


def _rest(data: bytes, file: BinaryIO) -> Iterator[bytes]:
    while data:
        yield data
        data = file.read(CHUNK_BYTES)


def _transcoded(data: bytes, file: BinaryIO) -> Iterator[bytes]:
    utf16 = codecs.getincrementaldecoder("utf-16")(errors="replace")
    for part in _rest(data, file):
        yield utf16.decode(part).encode("utf-8", "replace")
    yield utf16.decode(b"", final=True).encode("utf-8", "replace")


def _behind(parts: Iterator[bytes], start: int) -> Iterator[bytes]:
    """Drop the first bytes."""
    for part in parts:
        if start < len(part):
            yield part[start:]
        start = max(0, start - len(part))


def partitions(url: str) -> dict[str, str]:
    """Return the columns that a path gives, as `lang=de` in `/lang=de/part-0.parquet`."""
    found = (part.partition("=") for part in url.split("/")[:-1] if "=" in part)
    return {name: unquote(value) for name, _, value in found if name}


def write_bytes(url: str, data: bytes | pa.Buffer) -> None:
    """Write a file whole or not at all: through a rename, or by a store's own atomic upload."""
    system, path = split(url)
    is_local = isinstance(system, fs.LocalFileSystem)
    target = (
        f"{os.path.dirname(path)}/.{os.path.basename(path)}.{os.getpid()}" if is_local else path
    )
    with system.open_output_stream(target) as stream:
        stream.write(data)
    if is_local:
        system.move(target, path)
