"""Streams, events and graphs of the emulated GPU; work is done when the host waits for it."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.utils._python_dispatch import _disable_current_modes

from tests.emulated_gpu.memory import Allocator

if TYPE_CHECKING:
    from tests.emulated_gpu.gpu import EmulatedGpu

Work = Callable[[], object]
WAIT_S = 60


class Stream:
    """A queue of work; `queued` and `done` count it."""

    def __init__(self, gpu: "EmulatedGpu") -> None:
        self.queued = self.done = 0
        self._gpu = gpu
        self._work: deque[Work] = deque()
        self._adding = threading.Lock()
        gpu.streams.append(self)

    def add(self, work: Work) -> None:
        with self._adding:
            self._work.append(work)
            self.queued += 1

    def run_up_to(self, place: int) -> None:
        """Do what was queued before, on the calling thread."""
        with self._gpu.working, torch.inference_mode(), _disable_current_modes():
            while self.done < place:
                self._work.popleft()()
                self.done += 1

    def synchronize(self) -> None:
        self._gpu.wait("stream.synchronize")
        self.run_up_to(self.queued)

    def wait_stream(self, other: "Stream") -> None:
        place = other.queued
        self.add(lambda: other.run_up_to(place))


class Event:
    """A place in a stream's queue."""

    def __init__(self, gpu: "EmulatedGpu") -> None:
        self._gpu = gpu

    def record(self, stream: Stream | None = None) -> None:
        self._stream = stream or self._gpu.current_stream()
        self._place = self._stream.queued

    def synchronize(self) -> None:
        self._gpu.wait("event.synchronize")
        self._stream.run_up_to(self._place)

    def elapsed_time(self, _: "Event") -> float:
        return next(self._gpu.elapsed_ms)


class Graph:
    """Recorded work; a pool's memory is that of all its graphs, one after the other."""

    def __init__(self, gpu: "EmulatedGpu") -> None:
        self._gpu = gpu
        self.tape: list[Work] = []
        self.pool: Allocator | None = None

    def replay(self) -> None:
        self._gpu.replays += 1
        for work in self.tape:
            self._gpu.current_stream().add(work)

    @contextmanager
    def recording(self, pool: Allocator, stream: Stream) -> Iterator[None]:
        self._gpu.wait("the start of a capture")
        self._gpu.run_all()
        self.pool, self._gpu.threads.graph = pool, self
        try:
            with self._gpu.on_stream(stream):
                yield
        finally:
            self._gpu.threads.graph = None


class PerThread(threading.local):
    """What belongs to a thread: the stream that it works on, and the graph that it captures."""

    stream: Stream | None = None
    graph: Graph | None = None
