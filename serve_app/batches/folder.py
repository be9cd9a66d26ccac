"""Where files and batches are kept: a folder that every Router reaches.

```
locks            tells at a start whether the file system has locks
files/ID.json    a file's record     files/ID.data   its bytes
batches/ID.json  a batch's record, written by its maker and then by who has its lock
batches/ID.lock  held by the Router that works it off; the system takes it from a dead one
batches/ID.log   a line for each request that is done (log.py)
batches/ID.end   its owner wants it to end
open/ID          the batches that are not over
```

Every record is written beside its place and then moved there: a process may die at any time.
"""

import fcntl
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from deployments.config import AppConfig
from deployments.errors import NotFoundError, ServiceError
from serve_app.batches.objects import Batch, File, Record

ID = re.compile(r"(file-|batch_)[0-9a-f]{24}")
LOST_AFTER_S = 24 * 3600
R = TypeVar("R", bound=Record)


class Folder:
    """The folder; safe for any number of processes.

    Args:
        root: a path; its folders are made.
        clock: seconds since 1970.

    Raises:
        OSError: it cannot be written, or has no locks.
    """

    def __init__(self, root: Path, clock: Callable[[], float] = time.time) -> None:
        self.root = root
        self.clock = clock
        for name in ("files", "batches", "open"):
            (root / name).mkdir(parents=True, exist_ok=True)
        with (root / "locks").open("w") as tried:
            fcntl.flock(tried, fcntl.LOCK_SH)

    def save(self, record: Record) -> None:
        """Write a record in place of what is there."""
        path = self._record(record.id)
        beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        beside.write_text(record.model_dump_json())
        beside.replace(path)

    def load(self, shape: type[R], name: str, owner: str | None = None) -> R:
        """Read a record.

        Args:
            shape: `File` or `Batch`.
            name: its id.
            owner: None reads that of anyone.

        Raises:
            NotFoundError: there is none of that id, it is another owner's, or it has expired.
        """
        kind = shape.__name__.lower()
        if ID.fullmatch(name) and name.startswith(kind):
            try:
                record = shape.model_validate_json(self._record(name).read_bytes())
            except FileNotFoundError:
                pass
            else:
                if owner in (None, record.owner) and not self._has_expired(record):
                    return self.as_it_is(record)
        raise NotFoundError(f"there is no {kind} {name[:60]!r}")

    def owned(self, shape: type[R], owner: str) -> list[R]:
        """Return the records of an owner, the latest first."""
        folder = self.root / ("files" if shape is File else "batches")
        found = []
        for path in folder.glob("*.json"):
            try:
                found.append(self.load(shape, path.stem, owner))
            except NotFoundError:  # another's, or just deleted
                continue
        return sorted(found, key=lambda record: (record.created_at, record.id), reverse=True)

    def data(self, file_id: str) -> Path:
        """Return where a file's bytes are."""
        return self.root / "files" / f"{file_id}.data"

    def log(self, batch_id: str) -> Path:
        """Return where the answers of a batch are gathered."""
        return self._beside(batch_id, "log")

    def delete(self, file: File) -> None:
        """Delete a file."""
        self._record(file.id).unlink(missing_ok=True)
        self.data(file.id).unlink(missing_ok=True)

    def delete_expired(self) -> None:
        """Delete the files whose time is over, but for those that a batch still reads.

        Bytes that no record tells of were left by a Router that died; after a day they go too.
        """
        needed = {batch.input_file_id for batch in self.open_batches()}
        lost_s = self.clock() - LOST_AFTER_S
        for path in (self.root / "files").iterdir():
            with suppress(FileNotFoundError):  # another Router was faster
                if path.suffix == ".json":
                    file = File.model_validate_json(path.read_bytes())
                    if self._has_expired(file) and file.id not in needed:
                        self.delete(file)
                elif (
                    path.stat().st_mtime <= lost_s
                    and not self._record(path.name.split(".")[0]).exists()
                ):
                    path.unlink()

    def open_batches(self) -> list[Batch]:
        """Return the batches that are not over, the oldest first."""
        found = []
        for name in os.listdir(self.root / "open"):
            try:
                found.append(self.load(Batch, name))
            except NotFoundError:  # its maker died before it was there
                continue
        return sorted(found, key=lambda batch: (batch.created_at, batch.id))

    def begin(self, batch: Batch) -> None:
        """Keep a new batch, and let it be worked off."""
        self.save(batch)
        (self.root / "open" / batch.id).touch()

    def close(self, batch: Batch) -> None:
        """Keep a batch that is over; forget what it took to work it off."""
        self.save(batch)
        (self.root / "open" / batch.id).unlink(missing_ok=True)
        for ending in ("log", "end", "lock"):
            self._beside(batch.id, ending).unlink(missing_ok=True)

    def end(self, batch: Batch) -> None:
        """Note that a batch's owner wants it to end."""
        if not batch.is_over:
            self._beside(batch.id, "end").touch()

    def as_it_is(self, record: R) -> R:
        """Return a batch with what its owner has asked since it was written."""
        if isinstance(record, Batch) and record.cancelling_at is None:
            try:
                asked_s = int(self._beside(record.id, "end").stat().st_mtime)
            except FileNotFoundError:
                return record
            return record.model_copy(update={"cancelling_at": asked_s})
        return record

    @contextmanager
    def claimed(self, batch: Batch) -> Iterator[bool]:
        """Hold a batch for the block, if nobody else does; gives whether it is held."""
        handle = os.open(
            self._beside(batch.id, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(handle)

    def _has_expired(self, record: Record) -> bool:
        if not isinstance(record, File) or record.expires_at is None:
            return False
        return self.clock() >= record.expires_at

    def _record(self, name: str) -> Path:
        return self.root / ("files" if name.startswith("file-") else "batches") / f"{name}.json"

    def _beside(self, batch_id: str, ending: str) -> Path:
        return self.root / "batches" / f"{batch_id}.{ending}"


def folder_of(config: AppConfig) -> Folder | None:
    """Return the folder that the configuration names, if any.

    Raises:
        ServiceError: it cannot be written.
    """
    path = config.batches.folder
    try:
        return None if path is None else Folder(Path(path))
    except OSError as error:
        raise ServiceError(f"batches.folder {path} cannot be used: {error.strerror}") from error


def new_id(kind: str) -> str:
    """Return an id of a `file-` or a `batch_`."""
    return kind + secrets.token_hex(12)
