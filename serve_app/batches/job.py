"""One batch, from its input to the files of its answers.

A line whose Router died before its answer was written is computed again, so that each has one
answer; whoever takes the batch over goes on behind the answers in its log. The folder may be far
away: nothing of it is read or written in the event loop.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from serve_app.batches.folder import Folder
from serve_app.batches.lines import Line, faults_of, read_lines
from serve_app.batches.log import BELOW_FAILURE, Log, expired
from serve_app.batches.objects import Batch, Counts, Faults, File, LineFault, Status
from serve_app.batches.threads import in_thread, to_thread

NOTE_S = 1.0  # between two looks for the end of a batch, and two notes of its counts
BUSY = {429, 503}  # such a line is sent again


@dataclass(frozen=True)
class Answer:
    """What became of a line; `retry_after_s` where it should be sent again."""

    status: int
    request_id: str
    body: bytes
    retry_after_s: float = 1.0


Ask = Callable[[Batch, bytes], Awaitable[Answer]]
"""Answers the body of a line as HTTP would, in the lane for bulk work."""


async def set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event so long; return whether it is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


class BatchJob:
    """Answers the lines of batches, of any number at once, with so many lines under way in all.

    Args:
        folder: of files and batches.
        ask: see `Ask`.
        max_body_bytes: of a line's body.
        lines_under_way: at once, of all batches; each batch has the same part of them.
    """

    def __init__(self, folder: Folder, ask: Ask, max_body_bytes: int, lines_under_way: int) -> None:
        self._folder = folder
        self._ask = ask
        self._max_body_bytes = max_body_bytes
        self._lines_under_way = lines_under_way
        self._slots = asyncio.Semaphore(lines_under_way)  # who waits longest is next
        self._looking = asyncio.Lock()  # a look at an input keeps each custom_id in memory

    async def run(self, batch: Batch) -> None:
        """Do what is left to do of a batch that nobody else has."""
        if batch.is_over:  # its Router died before it was closed
            await in_thread(self._folder.close, batch)
            return
        path = self._folder.data(batch.input_file_id)
        if not await to_thread(path.exists):
            fault = LineFault(code="file_not_found", message="the input file was deleted")
            await self._close(batch, "failed", errors=Faults(data=(fault,)))
            return
        if batch.status == "validating":
            look = partial(faults_of, path, batch.endpoint, self._max_body_bytes)
            async with self._looking:
                total, faults = await to_thread(look)
            if faults:
                await self._close(batch, "failed", errors=Faults(data=tuple(faults)))
                return
            batch = await self._move(batch, "in_progress", request_counts=Counts(total=total))
        log = await in_thread(Log, self._folder.log(batch.id))
        try:
            status = await self._answer_lines(batch, log)
            batch = await self._move(self._counted(batch, log), "finalizing")
            batch = await in_thread(self._written, batch, log, status)
            await self._close(batch, status)
        finally:
            await in_thread(log.close)

    async def _answer_lines(self, batch: Batch, log: Log) -> Status:
        """Answer all lines that have no answer yet; returns how it ended."""
        lines, reading = self._missing(batch, log), asyncio.Lock()
        ended, over = await to_thread(self._ended, batch), asyncio.Event()

        async def work() -> bool:
            """Answer the next line; returns whether there may be more."""
            async with reading:  # a thread, because a line may be megabytes
                line = await to_thread(next, lines, None)
            if line is None:
                return False
            answer = await self._ask(batch, line.body)
            while answer.status in BUSY and not await set_within(over, answer.retry_after_s):
                answer = await self._ask(batch, line.body)
            if answer.status not in BUSY:
                what = answer.status, answer.request_id, answer.body
                await in_thread(log.add, line, *what)
            return True

        async def work_on() -> None:
            more = True
            while more:
                async with self._slots:  # before a line is read: no more are in memory
                    more = ended is None and await work()

        workers = [asyncio.create_task(work_on()) for _ in range(self._lines_under_way)]
        try:
            running = set(workers)
            while running:
                done, running = await asyncio.wait(
                    running, timeout=NOTE_S, return_when=asyncio.FIRST_EXCEPTION
                )
                for worker in done:
                    worker.result()
                await in_thread(self._folder.save, self._counted(batch, log))
                ended = ended or await to_thread(self._ended, batch)
                if ended:
                    over.set()
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return ended or "completed"

    def _missing(self, batch: Batch, log: Log) -> Iterator[Line]:
        """Yield the lines that have no answer."""
        path = self._folder.data(batch.input_file_id)
        for line in read_lines(path, batch.endpoint, self._max_body_bytes):
            if isinstance(line, Line) and line.number not in log.done:
                yield line

    def _ended(self, batch: Batch) -> Status | None:
        """Return why a batch is to end before all its lines are done, if it is."""
        if self._folder.load(Batch, batch.id).cancelling_at is not None:
            return "cancelled"
        return "expired" if self._folder.clock() >= batch.expires_at else None

    def _written(self, batch: Batch, log: Log, status: Status) -> Batch:
        """Write the two files of the answers; the same again after a death in between."""
        outputs = {
            "output": self._new_file(batch, "output"),
            "error": self._new_file(batch, "error"),
        }
        paths = {kind: self._folder.data(file.id) for kind, file in outputs.items()}
        beside = {kind: path.with_suffix(".new") for kind, path in paths.items()}
        with beside["output"].open("wb") as output, beside["error"].open("wb") as error:
            for _, answered, text in log.answers():
                (error if answered >= BELOW_FAILURE else output).write(text)
            for line in self._missing(batch, log) if status == "expired" else ():
                error.write(expired(line))
        known: dict[str, str] = {}
        for kind, file in outputs.items():
            size = beside[kind].stat().st_size
            if not size:
                beside[kind].unlink()
                continue
            beside[kind].replace(paths[kind])
            self._folder.save(file.model_copy(update={"bytes": size}))
            known[f"{kind}_file_id"] = file.id
        return batch.model_copy(update=known)

    def _new_file(self, batch: Batch, kind: str) -> File:
        now_s, kept_s = int(self._folder.clock()), batch.output_expires_after_s
        digest = hashlib.sha256(f"{batch.id} {kind}".encode()).hexdigest()
        return File(
            id=f"file-{digest[:24]}",
            owner=batch.owner,
            created_at=now_s,
            expires_at=None if kept_s is None else now_s + kept_s,
            bytes=0,
            filename=f"{batch.id}_{kind}.jsonl",
            purpose="batch_output",
        )

    def _counted(self, batch: Batch, log: Log) -> Batch:
        done, failed = len(log.done), log.failed
        counts = {"completed": done - failed, "failed": failed}
        counted = batch.request_counts.model_copy(update=counts)
        return batch.model_copy(update={"request_counts": counted})

    async def _move(self, batch: Batch, status: Status, **values: object) -> Batch:
        """Give a batch its next status, and write it down."""
        return await in_thread(self._written_down, self._folder.save, batch, status, values)

    async def _close(self, batch: Batch, status: Status, **values: object) -> None:
        await in_thread(self._written_down, self._folder.close, batch, status, values)

    def _written_down(
        self,
        write: Callable[[Batch], None],
        batch: Batch,
        status: Status,
        values: dict[str, object],
    ) -> Batch:
        now = {"status": status, f"{status}_at": int(self._folder.clock())}
        batch = self._folder.as_it_is(batch).model_copy(update=now | values)
        write(batch)
        return batch
