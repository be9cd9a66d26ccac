"""The answers of a batch as they come: each line is there whole, or it is not there.

A line is `NUMBER STATUS ANSWER`: the number of the input's line, the HTTP status, and what the
output says of it. Whoever takes over from a dead process goes on behind what it finds.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from threading import Lock

import orjson

from serve_app.batches.lines import Line

END = b',"error":null}\n'  # a line that a dying process began does not have it
HEAD = re.compile(rb"(\d+) (\d{3}) (?=\{)")
BELOW_FAILURE = 400


class Numbers:
    """A set of numbers from 1 on; of those that are there without a gap only the last is kept."""

    def __init__(self) -> None:
        self._last = 0
        self._beyond: set[int] = set()

    def add(self, number: int) -> None:
        """Add a number."""
        if number not in self:
            self._beyond.add(number)
            while self._last + 1 in self._beyond:
                self._last += 1
                self._beyond.remove(self._last)

    def __contains__(self, number: int) -> bool:
        """Return whether a number is there."""
        return number <= self._last or number in self._beyond

    def __len__(self) -> int:
        """Return how many there are."""
        return self._last + len(self._beyond)


class Log:
    """The log of a batch; one process at a time writes it, from any of its threads.

    Attributes:
        done: numbers of the input's lines that have an answer.
        failed: how many of these are errors.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self.done = Numbers()
        self.failed = 0
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        for number, status, _ in self.answers():
            self.done.add(number)
            self.failed += status >= BELOW_FAILURE
        os.write(self._handle, b"\n")  # ends what a dead process had begun

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._handle)

    def add(self, line: Line, status: int, request_id: str, body: bytes) -> None:
        """Write the answer to a line; `body` is JSON."""
        names = {"id": f"batch_req_{request_id}", "custom_id": line.custom_id}
        response = {"status_code": status, "request_id": request_id}
        head = orjson.dumps(names)[:-1] + b',"response":' + orjson.dumps(response)[:-1]
        answer = b"%d %d %b" % (line.number, status, head + b',"body":' + body + b"}" + END)
        with self._lock:  # a write may be cut short, and its rest has to follow it
            while answer:
                answer = answer[os.write(self._handle, answer) :]
            self.done.add(line.number)
            self.failed += status >= BELOW_FAILURE

    def answers(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield number, status and answer of each line that has one, once."""
        seen = Numbers()
        with self._path.open("rb") as file:
            for text in file:
                head = HEAD.match(text) if text.endswith(END) else None
                if head and int(head[1]) not in seen:
                    seen.add(int(head[1]))
                    yield int(head[1]), int(head[2]), text[head.end() :]


def expired(line: Line) -> bytes:
    """Return what the error file says of a line that was not come to."""
    error = {"code": "batch_expired", "message": "the batch's time was over before its turn"}
    names = {"id": f"batch_req_{line.number}", "custom_id": line.custom_id}
    return orjson.dumps(names | {"response": None, "error": error}) + b"\n"
