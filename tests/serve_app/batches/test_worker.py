"""What becomes of a batch, with answers that come when and as they are told to."""

import asyncio
import multiprocessing
import os
import random
import signal
from pathlib import Path

import pytest

from serve_app.batches import worker as module
from serve_app.batches.folder import Folder
from serve_app.batches.job import Answer, BatchJob
from serve_app.batches.objects import WINDOW_S, Batch
from tests.serve_app.batches.conftest import NOW_S
from tests.serve_app.batches.told import answers, text, worker_of

LINES = 300


@pytest.fixture
def ended(monkeypatch):
    """Set once a worker has seen that its batch is to end."""
    seen, look = asyncio.Event(), BatchJob._ended

    def noted(job, batch):
        status = look(job, batch)
        if status is not None:
            seen.set()
        return status

    monkeypatch.setattr(BatchJob, "_ended", noted)
    return seen


async def test_every_line_has_its_answer_in_one_of_two_files(folder, begun, service):
    """Counts, times and files are those of OpenAI."""
    service.statuses = [200, 400, 200, 500]
    batch = begun(text(range(10)))
    await worker_of(folder, service, 1).work_off()
    done = folder.load(Batch, batch.id)
    assert done.status == "completed"
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (10, 8, 2)
    assert {done.in_progress_at, done.finalizing_at, done.completed_at} == {NOW_S}
    good, bad = answers(folder, done.output_file_id), answers(folder, done.error_file_id)
    assert (set(bad), len(good)) == ({"r1", "r3"}, 8)
    assert good["r5"]["response"]["body"] == {"input": ["text 5"]}
    assert bad["r3"]["response"]["status_code"] == 500
    assert folder.open_batches() == []


async def test_a_busy_service_is_asked_again(folder, begun, service):
    """429 and 503 are no answers."""
    service.statuses = [429, 503, 429]
    batch = begun(text(range(2)))
    await worker_of(folder, service, 1).work_off()
    assert service.asked == ["text 0"] * 4 + ["text 1"]
    assert folder.load(Batch, batch.id).request_counts.completed == 2


async def test_a_batch_that_ends_does_not_wait_for_lines_that_are_sent_again_later(
    folder, begun, service
):
    """As where a tower sleeps, and it takes minutes to start."""
    service.statuses, service.retry_after_s = [503, 503], 600.0
    batch = begun(text(range(2)))
    working = asyncio.create_task(worker_of(folder, service, 2).work_off())
    for _ in range(2):
        await service.called.acquire()
    folder.end(batch)
    async with asyncio.timeout(20):
        await working
    assert folder.load(Batch, batch.id).status == "cancelled"
    assert len(service.asked) == 2


async def test_a_bad_input_is_refused_before_anything_is_run(folder, begun, service):
    """With every fault and its line."""
    batch = begun(text([1, 1]) + "{\n")
    await worker_of(folder, service).work_off()
    failed = folder.load(Batch, batch.id)
    assert (failed.status, service.asked) == ("failed", [])
    assert [(x.code, x.line) for x in failed.errors.data] == [
        ("duplicate_custom_id", 2),
        ("invalid_json_line", 3),
    ]


async def test_an_input_that_was_deleted_ends_its_batch(folder, begun, service):
    """It would be tried for ever."""
    batch = begun(text([1]))
    folder.data(batch.input_file_id).unlink()
    await worker_of(folder, service).work_off()
    failed = folder.load(Batch, batch.id)
    assert (failed.status, failed.errors.data[0].code) == ("failed", "file_not_found")


async def test_what_was_done_before_a_cancellation_is_kept(folder, begun, service, ended):
    """The status says that it is ending until it has ended."""
    service.gate = asyncio.Event()
    batch = begun(text(range(50)))
    working = asyncio.create_task(worker_of(folder, service, 3).work_off())
    for _ in range(3):
        await service.called.acquire()
    folder.end(batch)
    assert folder.load(Batch, batch.id).shown()["status"] == "cancelling"
    await ended.wait()
    service.gate.set()
    await working
    done = folder.load(Batch, batch.id)
    assert (done.status, done.request_counts.total) == ("cancelled", 50)
    assert done.cancelled_at == NOW_S
    assert done.cancelling_at
    assert len(answers(folder, done.output_file_id)) == len(service.asked) < 50


async def test_a_batch_that_is_late_names_the_lines_it_did_not_come_to(
    folder, begun, service, ended, clock
):
    """They are in the error file; those that are done are kept."""
    service.gate = asyncio.Event()
    batch = begun(text(range(20)))
    working = asyncio.create_task(worker_of(folder, service, 2).work_off())
    for _ in range(2):
        await service.called.acquire()
    clock.now_s += WINDOW_S
    await ended.wait()
    service.gate.set()
    await working
    done = folder.load(Batch, batch.id)
    assert (done.status, done.expired_at) == ("expired", NOW_S + WINDOW_S)
    good, bad = answers(folder, done.output_file_id), answers(folder, done.error_file_id)
    assert len(good) + len(bad) == 20
    assert {x["error"]["code"] for x in bad.values()} == {"batch_expired"}


async def test_a_batch_that_is_to_end_before_it_has_begun_asks_nothing(
    folder, begun, service, clock
):
    """No line is begun whose answer nobody wants."""
    cancelled, late = begun(text(range(9))), begun(text(range(9)))
    folder.end(cancelled)
    clock.now_s += WINDOW_S
    await worker_of(folder, service, 3).work_off()
    assert service.asked == []
    assert folder.load(Batch, cancelled.id).status == "cancelled"
    assert folder.load(Batch, late.id).status == "expired"


async def test_a_fault_of_the_folder_is_tried_again(folder, begun, service, monkeypatch):
    """A full disk is no end."""
    batch, looks, closed = begun(text([1])), 0, asyncio.Event()
    monkeypatch.setattr(module, "AFTER_FAULT_S", 0.0)
    look, close = folder.open_batches, folder.close

    def open_batches():
        nonlocal looks
        looks += 1
        if looks == 1:
            raise OSError("no space left")
        return look()

    monkeypatch.setattr(folder, "open_batches", open_batches)
    monkeypatch.setattr(folder, "close", lambda batch: (close(batch), closed.set()))
    working = asyncio.create_task(worker_of(folder, service).run())
    async with asyncio.timeout(60):
        await closed.wait()
    working.cancel()
    assert folder.load(Batch, batch.id).status == "completed"


def work_off(root: Path) -> None:
    """Work off what there is; each answer takes its time."""

    async def slowly(_: Batch, body: bytes) -> Answer:
        await asyncio.sleep(0.005)
        return Answer(200, "q", body)

    asyncio.run(worker_of(Folder(root), slowly).work_off())


def test_a_worker_killed_at_random_leaves_no_line_out_and_none_twice(folder, begun):
    """Processes that are killed one after the other; the last is let finish."""
    batch, chance = begun(text(range(LINES))), random.Random(7)
    spawn = multiprocessing.get_context("spawn")
    kills = 0
    while folder.load(Batch, batch.id).status != "completed":
        process = spawn.Process(target=work_off, args=(folder.root,))
        process.start()
        if kills < 5:
            before = folder.log(batch.id).stat().st_size if folder.log(batch.id).exists() else 0
            aim = before + chance.randrange(1, 6000)
            while process.is_alive() and _size(folder, batch) < aim:
                process.join(0.002)
            if process.is_alive():
                kills += 1
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)
        process.join(60)
    done = folder.load(Batch, batch.id)
    assert kills == 5
    found = answers(folder, done.output_file_id)
    assert set(found) == {f"r{number}" for number in range(LINES)}
    assert all(
        x["response"]["body"] == {"input": [f"text {name[1:]}"]} for name, x in found.items()
    )
    assert done.request_counts.completed == LINES


def _size(folder: Folder, batch: Batch) -> int:
    try:
        return folder.log(batch.id).stat().st_size
    except FileNotFoundError:
        return 0
