"""Which files an input has: a file, those of a folder or a pattern, or of a Delta table now."""

import fnmatch
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import PurePosixPath

from pyarrow import fs

from deployments.bulk.reading.files import IMAGE_SUFFIXES, S3, split, suffixes
from deployments.model.errors import OptionError

WILDCARD = re.compile(r"[*?[]")
SIDE_FILES = ("*.crc", "*.md5", "*.sha256", "*.md", "LICENSE", "LICENSE.txt", "*.yaml")  # no rows
LOGS = {"_delta_log": "Delta", ".hoodie": "Hudi", "metadata": "Iceberg"}
LOG = re.compile(r"/(?:(_delta_log|\.hoodie)/|(metadata)/[^/]*\.metadata\.json$)")


def find_files(url: str, ignored: Sequence[str] = ()) -> dict[str, int]:
    """Return the file, the files of a folder and its subfolders, or those of a glob, sorted.

    They are local paths or URLs of a store, each with its size in bytes.

    What exists under exactly this name is that file or folder, brackets and all. Hidden files and
    those whose name begins with an underscore are left out, but for photos, and what lies in such
    folders, but for partitions; so are those that a pattern in `ignored` means. Of a Delta table
    they are the files that it has now.

    Raises:
        OptionError: there are none, or they do not tell which rows are the input.
    """
    system, path = split(url)
    prefix = ""
    if not isinstance(system, fs.LocalFileSystem):
        prefix = url[: url.rindex(path)] if path and path in url else S3
    try:
        kind, size_bytes = _look_up(system, path)
        if kind is fs.FileType.File:
            return {prefix + path: size_bytes}
        top = path
        if kind is fs.FileType.NotFound and WILDCARD.search(path):
            top = WILDCARD.split(path)[0].rpartition("/")[0]
        every = dict(sorted(_walk(system, top)))
    except OSError as error:
        raise OptionError(f"the input {url!r} cannot be read: {error}") from error
    found = {
        prefix + name: size_bytes
        for name, size_bytes in every.items()
        if (top == path or fnmatch.fnmatchcase(name, path)) and not _is_hidden(name, top)
    }
    logs = filter(None, map(LOG.search, (*_logs_above(system, top), *every)))
    tables = {log.string[: log.start()]: LOGS[log[1] or log[2]] for log in logs}
    for table, name in tables.items():
        if table != path or name != "Delta":
            way = "name the table itself, or " if name == "Delta" else ""
            raise _not_its_files(name, prefix + table, way)
        found = _current(url, found)
    if not found:
        raise OptionError(f"the input {url!r} has no files")
    passed = (*ignored, *SIDE_FILES)
    return {x: size for x, size in found.items() if not _matches(x, passed)}


def _walk(system: fs.FileSystem, top: str) -> Iterator[tuple[str, int]]:
    """Yield all files below a folder; through links too where it is local."""
    if not isinstance(system, fs.LocalFileSystem):
        found = system.get_file_info(fs.FileSelector(top, recursive=True, allow_not_found=True))
        yield from ((x.path, x.size) for x in found if x.is_file)
        return
    places: dict[str, tuple[str, ...]] = {}  # without links, of what is above folders to come
    for folder, folders, names in os.walk(top or "/", followlinks=True):
        above = (*places.pop(folder, ()), os.path.realpath(folder))
        below = {x: os.path.realpath(os.path.join(folder, x)) for x in folders}
        # A link to a folder above would be walked for ever.
        folders[:] = [x for x in folders if not any(_is_in(place, below[x]) for place in above)]
        places |= {os.path.join(folder, x): above for x in folders}
        for path in (os.path.join(folder, name) for name in names):
            if os.path.isfile(path):
                yield path, os.path.getsize(path)


def _is_in(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")


def _is_hidden(name: str, top: str) -> bool:
    """Tell whether a name below a folder is hidden; photos and partitions may begin with `_`."""
    *folders, file = filter(None, name.removeprefix(top).split("/"))
    return any(x[0] == "." or (x[0] == "_" and "=" not in x) for x in folders) or (
        file[0] == "." or (file[0] == "_" and suffixes(file)[0] not in IMAGE_SUFFIXES)
    )


def _logs_above(system: fs.FileSystem, top: str) -> Iterator[str]:
    """Yield the logs of tables that a folder is a part of."""
    for folder in (str(x) for x in PurePosixPath(top).parents if x.name or x.root):
        for log in ("_delta_log", ".hoodie"):
            with suppress(OSError):  # it may be forbidden to look there
                if _look_up(system, f"{folder}/{log}")[0] is fs.FileType.Directory:
                    yield f"{folder}/{log}/"


def _look_up(system: fs.FileSystem, path: str) -> tuple[fs.FileType, int]:
    """Return what has exactly this name, and its size; Arrow takes no name that is not UTF-8."""
    if not isinstance(system, fs.LocalFileSystem):
        info = system.get_file_info(path)
        return info.type, info.size or 0
    if os.path.isfile(path):
        return fs.FileType.File, os.path.getsize(path)
    return fs.FileType.Directory if os.path.isdir(path) else fs.FileType.NotFound, 0


def is_folder(url: str) -> bool:
    """Tell whether a folder has this name."""
    return _look_up(*split(url))[0] is fs.FileType.Directory


def folder_of(url: str) -> str:
    """Return the folder that a file, folder or glob lies in, or is."""
    kind = _look_up(*split(url))[0]
    if kind is fs.FileType.Directory:
        return url
    name = WILDCARD.split(url)[0] if kind is fs.FileType.NotFound else url
    folder, slash, _ = name.rpartition("/")
    return folder or slash or "."


def _matches(path: str, patterns: Sequence[str]) -> bool:
    name = path.rpartition("/")[2]
    return any(fnmatch.fnmatchcase(name, x) or path == x for x in patterns)


def _current(url: str, files: dict[str, int]) -> dict[str, int]:
    """Return those of the files that the Delta table has now.

    Raises:
        OptionError: its files alone do not tell its rows.
    """
    try:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError

        table = DeltaTable(url)
        needs, current = table.protocol(), set(table.file_uris())
    except ImportError:
        raise OptionError("Delta needs deltalake; pip install 'jina-clip-serve[delta]'") from None
    except DeltaError as error:
        raise OptionError(f"{url!r} is no Delta table that can be read: {error}") from error
    # Deleted rows and renamed columns are in its log alone; times without a zone are not.
    features = set(needs.reader_features or ()) - {"timestampNtz"}
    if features or needs.min_reader_version == 2 or not current <= set(files):
        raise _not_its_files("Delta", url)
    return {path: files[path] for path in files if path in current}


def _not_its_files(name: str, table: str, way: str = "") -> OptionError:
    return OptionError(
        f"the rows of the {name} table {table!r} are not those of its files alone; {way}read it in "
        f"Python by ray.data.read_{name.lower()} and embed that dataset by deployments.bulk.embed"
    )
