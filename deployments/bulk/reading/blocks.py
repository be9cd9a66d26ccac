"""The input cut into blocks of rows: the unit of work, of output and of resuming.

Cutting depends on the input and the number of rows alone, so that a resumed job cuts alike. Files
are looked at in Ray tasks; the driver sees where rows lie and their types, never the rows.
"""

import hashlib
import itertools
import math
from collections.abc import Sequence

import pyarrow as pa
import ray

from deployments.bulk.reading.columnar import lance_version
from deployments.bulk.reading.files import partitions, shown, suffixes
from deployments.bulk.reading.finding import find_files, is_folder
from deployments.bulk.reading.formats import KINDS, MODULES, UNREADABLE
from deployments.bulk.reading.plan import Look, Part, Plan, RowBlock
from deployments.bulk.reading.types import TEXT, merged
from deployments.model.errors import OptionError

PART_BYTES = 128 * 1024 * 1024  # of lines of JSON that one task looks at
SMALL_BYTES, FEW_FILES = 4 * 1024 * 1024, 32  # looked at here, in less time than a task takes
SHOWN_FAULTS = 3


def cut_input(url: str, block_rows: int, ignored: Sequence[str] = ()) -> Plan:
    """List the input and cut it into blocks of at most `block_rows` rows.

    Args:
        url: file, folder or glob.
        block_rows: most rows of a block.
        ignored: patterns of names of files that are no input.

    Raises:
        OptionError: nothing is there, or nothing that can be read.
    """
    is_lance = is_folder(f"{url.rstrip('/')}/_versions")
    files = {lance_version(url): 0} if is_lance else find_files(url, ignored)
    kinds = {x: "lance" if is_lance else KINDS.get(suffixes(x)[0], "") for x in files}
    lost = {path: "no known kind of file" for path, kind in kinds.items() if not kind}
    images = [path for path, kind in kinds.items() if kind == "images"]
    tables = [path for path, kind in kinds.items() if kind not in ("", "images")]
    if tables:
        lost |= dict.fromkeys(images, "an image beside tables, which name theirs")
    parts = [part for path in tables for part in _parts(path, kinds[path], files[path])]
    looks = look_at(parts, block_rows, sum(files[path] for path in tables))
    lost |= {part.url: found.fault for part, found in zip(parts, looks, strict=True) if found.fault}
    found: list[tuple[str, tuple[str, ...], int, int]] = [
        (part.kind, (part.url,), start, min(block_rows, look.num_rows - i * block_rows))
        for part, look in zip(parts, looks, strict=True)
        for i, start in enumerate(look.starts)
    ]
    if not tables:
        cuts = (images[x : x + block_rows] for x in range(0, len(images), block_rows))
        found = [("images", tuple(paths), 0, len(paths)) for paths in cuts]
    if not found:
        raise OptionError(_nothing(url, lost))
    first_rows = itertools.accumulate((count for *_, count in found), initial=0)
    blocks = [RowBlock(i, *x, next(first_rows)) for i, x in enumerate(found)]
    digest = hashlib.sha256(repr([*files.items()]).encode("utf-8", "surrogateescape")).hexdigest()
    found_types = merged(look.types for look in looks)
    types = {x: TEXT if pa.types.is_null(kind) else kind for x, kind in found_types.items()}
    fingerprint = f"{digest} in blocks of {block_rows} rows"
    return Plan(tuple(blocks), types, fingerprint, {shown(x): lost[x] for x in lost})


def look_at(parts: Sequence[Part], block_rows: int, size_bytes: int) -> list[Look]:
    """Look at files in parallel, on the Ray that runs."""
    if not ray.is_initialized() or (size_bytes < SMALL_BYTES and len(parts) < FEW_FILES):
        return _look_at_some(parts, block_rows)
    tasks = max(1, int(ray.cluster_resources().get("CPU", 1)))
    # No CPUs are asked for: stages of another job may hold them all.
    several = ray.remote(num_cpus=0, scheduling_strategy="SPREAD")(_look_at_some)
    found = ray.get([several.remote(parts[i::tasks], block_rows) for i in range(tasks)])
    return [found[i % tasks][i // tasks] for i in range(len(parts))]


def _look_at_some(parts: Sequence[Part], block_rows: int) -> list[Look]:
    """Look at parts one after the other; a file that cannot be read is one fault."""
    looks: list[Look] = []
    for part in parts:
        try:
            found = MODULES[part.kind].look(part, block_rows)
        except UNREADABLE as error:
            found = Look(fault=f"it cannot be read: {error}")
        if found.num_rows:
            found.types = {**dict.fromkeys(partitions(part.url), TEXT), **found.types}
        looks.append(found)
    return looks


def _parts(path: str, kind: str, size_bytes: int) -> list[Part]:
    """Cut a large file of lines, which can be looked at anywhere, into parts."""
    step = PART_BYTES if kind == "jsonl" and not suffixes(path)[1] else size_bytes
    starts = range(0, size_bytes, step) if size_bytes else [0]
    # The last one has no end: as UTF-8 a text may be longer than its file.
    stops = [*starts[1:], math.inf]
    return [Part(path, kind, *x) for x in zip(starts, stops, strict=True)]


def _nothing(url: str, lost: dict[str, str]) -> str:
    """Say why there are no rows: of files that cannot be read the first three, and what can be."""
    if not lost:
        return f"the input {url!r} has no rows"
    faults = "; ".join(f"{shown(path)}: {lost[path]}" for path in list(lost)[:SHOWN_FAULTS])
    more = f", and {len(lost) - SHOWN_FAULTS:,} more files" if len(lost) > SHOWN_FAULTS else ""
    known = " ".join(KINDS)
    return f"the input {url!r} has no rows that can be read: {faults}{more} (known are {known})"
