"""Lines, a service that answers as it is told to, and a worker that asks it."""

import asyncio
import json
from typing import Any

from serve_app.batches.folder import Folder
from serve_app.batches.job import Answer, BatchJob
from serve_app.batches.objects import Batch
from serve_app.batches.worker import Worker


def line(number: int, **changed: Any) -> str:
    """Return a line of an input."""
    body = {"input": [f"text {number}"]}
    given = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/embeddings", "body": body}
    return json.dumps(given | changed)


class Service:
    """Answers a body with itself; statuses are told, 200 otherwise."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.statuses: list[int] = []
        self.retry_after_s = 0.0
        self.gate: asyncio.Event | None = None
        self.called = asyncio.Semaphore(0)

    async def __call__(self, batch: Batch, body: bytes) -> Answer:
        self.asked.append(json.loads(body)["input"][0])
        self.called.release()
        if self.gate is not None:
            await self.gate.wait()
        status = self.statuses.pop(0) if self.statuses else 200
        return Answer(status, f"q{len(self.asked)}", body, self.retry_after_s)


def worker_of(folder, service, lines_under_way=4):
    return Worker(folder, BatchJob(folder, service, 1000, lines_under_way))


def text(numbers) -> str:
    return "".join(f"{line(number)}\n" for number in numbers)


def answers(folder: Folder, file_id: str | None) -> dict[str, dict]:
    """Return the answers of a file by custom_id; each is there once."""
    read = [json.loads(x) for x in folder.data(file_id).read_text().splitlines()]
    found = {x["custom_id"]: x for x in read}
    assert len(found) == len(read)
    return found
