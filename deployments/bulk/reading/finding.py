"""Which files an input has: a file, those of a folder or a pattern, or of a Delta table now."""

import fnmatch
import os
import re
from collections.abc import Iterator, Sequence

from pyarrow import fs

from deployments.bulk.reading.files import S3, split
from deployments.model.errors import OptionError

WILDCARD = re.compile(r"[*?[]")
SIDE_FILES = ("*.crc", "*.md5", "*.sha256", "*.md", "LICENSE*", "*.yaml")  # that hold no rows


def find_files(url: str, ignored: Sequence[str] = ()) -> dict[str, int]:
    """Return the file, the files of a folder and its subfolders, or those of a glob, sorted.

    They are local paths or URLs of a store, each with its size in bytes.

    What exists under exactly this name is that file or folder, brackets and all. Hidden files and
    those whose name begins with an underscore are left out, and what lies in such folders; so are
    those that a pattern in `ignored` means.

    Raises:
        OptionError: there are none, or they do not tell which rows are the input.
    """
    system, path = split(url)
    prefix = ""
    if not isinstance(system, fs.LocalFileSystem):
        prefix = url[: url.rindex(path)] if path and path in url else S3
    try:
        kind, size_bytes = _look_up(url)
        if kind is fs.FileType.File:
            return {prefix + path: size_bytes}
        top = path
        if kind is fs.FileType.NotFound and WILDCARD.search(path):
            top = WILDCARD.split(path)[0].rpartition("/")[0]
        found = {
            prefix + name: size_bytes
            for name, size_bytes in sorted(_walk(system, top))
            if (top == path or fnmatch.fnmatchcase(name, path))
            and not any(part[0] in "._" for part in name.removeprefix(top).split("/") if part)
        }
    except OSError as error:
        raise OptionError(f"the input {url!r} cannot be read: {error}") from error
    if not found:
        raise OptionError(f"the input {url!r} has no files")
    passed = (*ignored, *SIDE_FILES)
    return _current(url, {x: size for x, size in found.items() if not _matches(x, passed)})


def _walk(system: fs.FileSystem, top: str) -> Iterator[tuple[str, int]]:
    """Yield all files below a folder; through links too where it is local."""
    if not isinstance(system, fs.LocalFileSystem):
        found = system.get_file_info(fs.FileSelector(top, recursive=True, allow_not_found=True))
        yield from ((x.path, x.size) for x in found if x.is_file)
        return
    for folder, folders, names in os.walk(top or "/", followlinks=True):
        below = {x: os.path.realpath(os.path.join(folder, x)) + "/" for x in folders}
        here = os.path.realpath(folder) + "/"  # a link to a folder above would be walked for ever
        folders[:] = [x for x in folders if not here.startswith(below[x])]
        for path in (os.path.join(folder, name) for name in names):
            if os.path.isfile(path):
                yield path, os.path.getsize(path)


def _look_up(url: str) -> tuple[fs.FileType, int]:
    """Return what has exactly this name, and its size; Arrow takes no name that is not UTF-8."""
    system, path = split(url)
    if not isinstance(system, fs.LocalFileSystem):
        info = system.get_file_info(path)
        return info.type, info.size or 0
    if os.path.isfile(path):
        return fs.FileType.File, os.path.getsize(path)
    return fs.FileType.Directory if os.path.isdir(path) else fs.FileType.NotFound, 0


def is_folder(url: str) -> bool:
    """Tell whether a folder has this name."""
    return _look_up(url)[0] is fs.FileType.Directory


def folder_of(url: str) -> str:
    """Return the folder that a file, folder or glob lies in, or is."""
    kind = _look_up(url)[0]
    if kind is fs.FileType.Directory:
        return url
    name = WILDCARD.split(url)[0] if kind is fs.FileType.NotFound else url
    return name.rpartition("/")[0] or "."


def _matches(path: str, patterns: Sequence[str]) -> bool:
    name = path.rpartition("/")[2]
    return any(fnmatch.fnmatchcase(name, x) or path == x for x in patterns)


def _current(url: str, files: dict[str, int]) -> dict[str, int]:
    """Return those of the files that the Delta table has now; all where the folder is none.

    Raises:
        OptionError: it is an Iceberg table, or one of Delta whose files alone do not tell its rows.
    """
    name = "Delta" if is_folder(f"{url.rstrip('/')}/_delta_log") else ""
    if name:
        try:
            from deltalake import DeltaTable
            from deltalake.exceptions import DeltaError

            table = DeltaTable(url)
            needs, current = table.protocol(), set(table.file_uris())
        except ImportError:
            raise OptionError(
                "Delta needs deltalake; pip install 'jina-clip-serve[delta]'"
            ) from None
        except DeltaError as error:
            raise OptionError(f"{url!r} is no Delta table that can be read: {error}") from error
        # Deleted rows and renamed columns are in its log alone; times without a zone are not.
        features = set(needs.reader_features or ()) - {"timestampNtz"}
        if not features and needs.min_reader_version != 2 and current <= set(files):
            return {path: files[path] for path in files if path in current}
    elif any(path.endswith(".metadata.json") for path in files):
        name = "Iceberg"
    if not name:
        return files
    raise OptionError(
        f"the rows of the {name} table {url!r} are not those of its files alone; read it in Python "
        f"by ray.data.read_{name.lower()} and embed that dataset by deployments.bulk.embed"
    )
