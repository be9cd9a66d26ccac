"""The event loop answers requests: nothing of the folder, which may be far away, is done in it."""

import asyncio
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serve_app.batches.objects import Batch
from serve_app.batches.threads import in_thread
from tests.serve_app.batches.told import text, worker_of

TOUCHING = ("open", "os.", "fcntl.", "shutil.")


class Watch:
    """Notes which threads touch a folder's files, by Python's own audit events."""

    def __init__(self) -> None:
        self.root: str | None = None
        self.seen: list[tuple[str, int]] = []
        sys.addaudithook(self._note)  # stays until the process ends, so there is one

    @contextmanager
    def over(self, root: Path) -> Iterator[list[tuple[str, int]]]:
        self.seen = []
        self.root = str(root)
        try:
            yield self.seen
        finally:
            self.root = None

    def _note(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.root is None or not event.startswith(TOUCHING):
            return
        if event.startswith("fcntl.") or any(self.root in str(x) for x in arguments):
            self.seen.append((event, threading.get_ident()))


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.mark.parametrize(
    ("lines", "status"),
    [(text(range(9)), "completed"), ("no JSON\n", "failed"), (None, "failed")],
)
async def test_the_event_loop_touches_no_file(folder, begun, service, watch, lines, status):
    """From the claim of a batch to its end, whatever that is."""
    batch = begun(lines or "")
    if lines is None:
        folder.data(batch.input_file_id).unlink()
    with watch.over(folder.root) as seen:
        await worker_of(folder, service).work_off()
    ended = folder.load(Batch, batch.id)
    assert ended.status == status
    assert {"open", "os.rename", "os.remove", "fcntl.flock"} <= {event for event, _ in seen}
    assert [event for event, thread in seen if thread == threading.get_ident()] == []


async def test_a_file_that_the_event_loop_touches_is_seen(folder, begun, watch):
    """What the test above would see."""
    batch = begun("")
    with watch.over(folder.root) as seen:
        folder.save(batch)
    assert ("os.rename", threading.get_ident()) in seen


async def test_a_batch_is_let_go_only_once_its_record_is_written(
    folder, begun, service, monkeypatch
):
    """A worker that is stopped meanwhile would else write over what its successor writes."""
    batch, writing, go_on = begun(text(range(3))), threading.Event(), threading.Event()
    save = folder.save

    def slow(record):
        writing.set()
        go_on.wait(10)
        save(record)

    monkeypatch.setattr(folder, "save", slow)
    worker = asyncio.create_task(worker_of(folder, service).work_off())
    await asyncio.to_thread(writing.wait)
    worker.cancel()
    await asyncio.sleep(0)
    with folder.claimed(batch) as is_free:
        assert not is_free
    go_on.set()
    await asyncio.gather(worker, return_exceptions=True)
    with folder.claimed(batch) as is_free:
        assert is_free


async def test_requests_do_not_wait_for_the_folder():
    """Forty slow files are copied in threads of their own."""
    loop, begun, done = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def copy() -> None:
        loop.call_soon_threadsafe(begun.set)
        done.wait(30)

    copies = [asyncio.create_task(in_thread(copy)) for _ in range(40)]
    await begun.wait()  # all have been given to the pool in the same turn of the loop
    try:
        async with asyncio.timeout(5):
            assert await asyncio.to_thread(int) == 0  # as a large body is read
    finally:
        done.set()
        await asyncio.gather(*copies)
