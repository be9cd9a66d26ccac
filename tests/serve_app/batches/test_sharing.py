"""Several batches at once: what each has of a Router, and what each Router has of them."""

import asyncio
from collections import Counter

import pytest

from serve_app.batches import worker as module
from serve_app.batches.job import Answer, BatchJob
from serve_app.batches.objects import Batch
from tests.serve_app.batches.told import Service, text, worker_of

SLOTS = 4


class Counting:
    """Answers at once, and notes whose line it was."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.under_way = self.most_under_way = 0
        self.called: dict[str, asyncio.Event] = {}

    async def __call__(self, batch: Batch, body: bytes) -> Answer:
        self.asked.append(batch.id)
        self.called.setdefault(batch.id, asyncio.Event()).set()
        self.under_way += 1
        self.most_under_way = max(self.under_way, self.most_under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        return Answer(200, "q", body)


async def test_a_small_batch_does_not_wait_for_the_end_of_a_huge_one(folder, begun):
    """Both have half of the lines under way, of which there are no more than for one."""
    service, huge = Counting(), begun(text(range(20_000)))
    service.called[huge.id] = asyncio.Event()
    working = asyncio.create_task(worker_of(folder, service, SLOTS).work_off())
    await service.called[huge.id].wait()
    small = begun(text(range(100)))
    async with asyncio.timeout(120):
        while not folder.load(Batch, small.id).is_over:  # noqa: ASYNC110 - another task's file
            await asyncio.sleep(0.01)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    assert folder.load(Batch, small.id).request_counts.completed == 100
    assert folder.load(Batch, huge.id).status == "in_progress"
    first = service.asked.index(small.id)
    last = len(service.asked) - service.asked[::-1].index(small.id)
    while_both = Counter(service.asked[first:last])
    assert while_both[huge.id] <= while_both[small.id] + 2 * SLOTS
    assert 1 < service.most_under_way <= SLOTS


async def test_a_batch_that_cannot_be_worked_off_keeps_no_other_from_it(
    folder, begun, service, monkeypatch
):
    """It is tried again after a pause; meanwhile others are done."""
    bad, good = begun(text([1])), begun(text([2]))
    start, tried = BatchJob.run, asyncio.Event()

    async def run(job: BatchJob, batch: Batch) -> None:
        if batch.id == bad.id and not tried.is_set():
            tried.set()
            raise OSError("no space left")
        await start(job, batch)

    monkeypatch.setattr(BatchJob, "run", run)
    monkeypatch.setattr(module, "AFTER_FAULT_S", 0.2)
    working = asyncio.create_task(worker_of(folder, service).work_off())
    async with asyncio.timeout(60):
        await working
    assert tried.is_set()
    assert {folder.load(Batch, x.id).status for x in (bad, good)} == {"completed"}
    assert service.asked == ["text 2", "text 1"]


async def test_no_more_are_held_at_once_than_memory_is_for(folder, begun, service, monkeypatch):
    """The oldest come first; the others are taken as these are done."""
    monkeypatch.setattr(module, "MOST_HELD", 2)
    service.gate = asyncio.Event()
    batches = [begun(text([number]), created_at=number) for number in range(4)]
    working = asyncio.create_task(worker_of(folder, service, 8).work_off())
    async with asyncio.timeout(60):
        for _ in range(2):
            await service.called.acquire()
        assert sorted(service.asked) == ["text 0", "text 1"]
        service.gate.set()
        await working
    assert {folder.load(Batch, x.id).status for x in batches} == {"completed"}


@pytest.mark.parametrize("count", [2, 3])
async def test_workers_share_the_batches_and_no_line_is_run_twice(folder, begun, count):
    """Each batch is one's, and each worker has some: none takes all at once."""
    gate, services = asyncio.Event(), [Service() for _ in range(count)]
    for service in services:
        service.gate = gate
    batches = [begun(text(range(20))) for _ in range(2 * count)]
    workers = [asyncio.create_task(worker_of(folder, service).work_off()) for service in services]
    async with asyncio.timeout(60):
        for service in services:
            await service.called.acquire()
        gate.set()
        await asyncio.gather(*workers)
    assert sum(len(service.asked) for service in services) == 20 * len(batches)
    assert {folder.load(Batch, x.id).status for x in batches} == {"completed"}
