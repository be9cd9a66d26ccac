"""A file, local or of a store, and what is in it once it is unpacked."""

import bz2
import gzip
import io
import lzma
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast
from urllib.parse import quote, unquote

import pyarrow as pa
from pyarrow import fs

from deployments.model.errors import OptionError

S3 = "s3://"
STORE = re.compile(r"([a-z][a-z0-9+.-]+://[^/]*)(.*)", re.DOTALL)
PACKED: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": partial(pa.CompressedInputStream, compression="zstd"),
}
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ico"),
    *(".ppm", ".pgm", ".pbm"),
)
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
CHUNK_BYTES = 4 * 1024 * 1024
UTF8_MARK = b"\xef\xbb\xbf"  # written before UTF-8 by some programs
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")

Line = tuple[bytes, int]
"""A line with its end, and the byte after it."""


def suffixes(url: str) -> tuple[str, str]:
    """Return the lower-case end of a name, dot included, and the end that says how it is packed."""
    path = PurePosixPath(re.sub(r"\.tgz$", ".tar.gz", url.lower()))
    if path.suffix in PACKED:
        return PurePosixPath(path.stem).suffix, path.suffix
    return path.suffix, ""


def split(url: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a local path or of a store's URL, and the path in it.

    The keys of a store are as they are: no `%20` in them is a blank, and no `?` ends them.

    Raises:
        OptionError: a kind of store that Arrow does not know.
    """
    if match := STORE.match(url):
        uri = url if match[1] == "file://" else match[1] + quote(match[2])
        try:
            found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(uri)
        except (pa.ArrowException, ValueError) as error:
            raise OptionError(f"{url!r} cannot be opened: {error}") from error
        return found
    return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(url))


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
    source, packing = open_input(url), suffixes(url)[1]
    return cast(BinaryIO, PACKED[packing](source) if packing else source)


def chunks(url: str, start: int = 0) -> Iterator[bytes]:
    """Yield what is in a file of text from a byte on, unpacked and as UTF-8 without its mark.

    Places count the bytes that this yields, from the start of the file.
    """
    with io.BufferedReader(cast(io.RawIOBase, open_unpacked(url))) as file:
        head = file.peek(len(UTF8_MARK))
        if head[:2] in UTF16_MARKS:
            text = io.TextIOWrapper(file, "utf-16", "replace", newline="")
            parts = iter(lambda: text.read(CHUNK_BYTES).encode("utf-8", "replace"), b"")
        else:
            mark = len(UTF8_MARK) if head.startswith(UTF8_MARK) else 0
            if suffixes(url)[1]:
                file.read(mark)
            else:
                file.seek(mark + start)
                start = 0
            parts = iter(lambda: file.read(CHUNK_BYTES), b"")
        for part in parts:
            if start < len(part):
                yield part[start:]
            start = max(0, start - len(part))


def whole_lines(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes cut behind the end of a line: a newline, a return, or both."""
    held: list[bytes] = []
    for part in parts:
        end = max(part.rfind(b"\n"), part.rfind(b"\r", 0, -1)) + 1  # a newline may follow a return
        if end:
            yield b"".join((*held, part[:end]))
            held.clear()
        held.append(part[end:])
    if rest := b"".join(held):
        yield rest


def lines_of(parts: Iterable[bytes], start: int = 0) -> Iterator[Line]:
    """Yield the lines of a file from the byte `start` on, each with the byte after it."""
    for data in whole_lines(parts):
        for line in data.splitlines(keepends=True):
            start += len(line)
            yield line, start


def decode(data: bytes) -> str:
    """Return text in UTF-8 or, where it is none, in Windows-1252; no byte is lost."""
    for encoding in ("utf-8", "cp1252"):
        with suppress(UnicodeDecodeError):
            return data.decode(encoding)
    return data.decode("latin-1")


def partitions(url: str) -> dict[str, str | None]:
    """Return the columns that a path gives, as `lang=de` in `/lang=de/part-0.parquet`."""
    found = (part.partition("=") for part in url.split("/")[:-1] if "=" in part)
    return {x: None if y == HIVE_NULL else unquote(y) for x, _, y in found if x}
