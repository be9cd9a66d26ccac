"""A folder, and batches in it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve_app.batches import job, worker
from serve_app.batches.folder import Folder, new_id
from serve_app.batches.objects import WINDOW_S, Batch, File
from tests.serve_app.batches.told import Service

OWNER = "a" * 64
NOW_S = int(time.time())  # the clock of a test starts with that of the file system
MONTH_S = 30 * 24 * 3600


class Clock:
    """Tells the time that it is set to."""

    now_s = float(NOW_S)

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path, clock: Clock) -> Folder:
    return Folder(tmp_path / "batches", clock)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "LOOK_S", 0.01)
    monkeypatch.setattr(job, "NOTE_S", 0.01)


@pytest.fixture
def begun(folder: Folder) -> Callable[..., Batch]:
    """Begin a batch of some lines."""

    def begin(lines: str, owner: str = OWNER, **more: Any) -> Batch:
        file = File(
            id=new_id("file-"),
            owner=owner,
            created_at=NOW_S,
            bytes=len(lines),
            filename="in.jsonl",
            purpose="batch",
            expires_at=NOW_S + MONTH_S,
        )
        folder.data(file.id).write_text(lines)
        folder.save(file)
        batch = Batch(
            id=new_id("batch_"),
            owner=owner,
            endpoint="/v1/embeddings",
            input_file_id=file.id,
            expires_at=NOW_S + WINDOW_S,
            **{"created_at": NOW_S} | more,
        )
        folder.begin(batch)
        return batch

    return begin
