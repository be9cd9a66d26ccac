"""The folder of files and batches: who sees what, who holds what."""

import errno
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from deployments.config import AppConfig, BatchesConfig
from deployments.errors import NotFoundError, ServiceError
from serve_app.batches import folder as folder_module
from serve_app.batches.folder import Folder, folder_of
from serve_app.batches.objects import Batch, File
from tests.serve_app.batches.conftest import OWNER
from tests.serve_app.batches.told import line


def test_nobody_sees_what_another_key_made(folder, begun):
    """Neither by its id nor in a list."""
    batch, other = begun(line(1)), begun(line(1), owner="b" * 64)
    assert [x.id for x in folder.owned(Batch, OWNER)] == [batch.id]
    assert [x.id for x in folder.owned(File, OWNER)] == [batch.input_file_id]
    assert folder.load(Batch, batch.id, OWNER) == batch
    for shape, name in ((Batch, other.id), (File, other.input_file_id)):
        with pytest.raises(NotFoundError, match=name):
            folder.load(shape, name, OWNER)


@pytest.mark.parametrize(
    "name", ["", "../../etc/passwd", "file-" + "0" * 24, "file-" + "g" * 24, "batch_" + "0" * 24]
)
def test_an_id_is_no_path(folder, name):
    """What does not look like one is not looked for."""
    for shape in (File, Batch):
        with pytest.raises(NotFoundError):
            folder.load(shape, name)


def hold(root: Path, name: str, held: "multiprocessing.synchronize.Event") -> None:
    folder = Folder(root)
    with folder.claimed(folder.load(Batch, name)) as ours:
        assert ours
        held.set()
        signal.pause()


def test_a_batch_has_one_holder_and_a_dead_one_lets_go(folder, begun):
    """The system takes the lock from a process that is killed; nothing has to run out."""
    batch, spawn = begun(line(1)), multiprocessing.get_context("spawn")
    held = spawn.Event()
    process = spawn.Process(target=hold, args=(folder.root, batch.id, held))
    process.start()
    assert held.wait(60)
    with folder.claimed(batch) as ours:
        assert not ours
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    with folder.claimed(batch) as ours:
        assert ours


def test_a_batch_that_is_over_leaves_its_record_alone(folder, begun):
    """The oldest that is open comes first."""
    first, second = begun(line(1)), begun(line(2))
    assert {x.id for x in folder.open_batches()} == {first.id, second.id}
    folder.end(first)
    folder.log(first.id).touch()
    folder.close(first.model_copy(update={"status": "cancelled"}))
    assert [x.id for x in folder.open_batches()] == [second.id]
    left = {path.name for path in (folder.root / "batches").glob(f"{first.id}*")}
    assert left == {f"{first.id}.json"}


def test_a_folder_that_cannot_be_written_ends_the_start(tmp_path):
    """With its path, and why."""
    (tmp_path / "file").touch()
    config = AppConfig(batches=BatchesConfig(folder=str(tmp_path / "file")))
    with pytest.raises(ServiceError, match=r"batches\.folder .*file cannot be used"):
        folder_of(config)
    assert folder_of(AppConfig()) is None


def test_a_file_system_without_locks_ends_the_start(tmp_path, monkeypatch):
    """Two Routers would work off one batch."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(folder_module.fcntl, "flock", flock)
    config = AppConfig(batches=BatchesConfig(folder=str(tmp_path)))
    with pytest.raises(ServiceError, match=r"cannot be used: No locks available"):
        folder_of(config)
