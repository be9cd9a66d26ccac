"""The emulated GPU's memory: blocks that belong to a stream, and are used again at once."""

from collections import deque
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tests.emulated_gpu.streams import Stream

ALIGNMENT_BYTES = 512
GARBAGE = 0xFF  # NaN as floating point, -1 as an integer


class Block:
    """A piece of memory; `readers` are other streams that were said to read it."""

    def __init__(self, num_bytes: int, stream: "Stream") -> None:
        self.bytes = torch.full((num_bytes,), GARBAGE, dtype=torch.uint8)
        self.num_bytes = num_bytes
        self.stream = stream
        self.readers: set[Stream] = set()


class Memory:
    """A block in use: free again when the last tensor over it is gone."""

    def __init__(self, block: Block, allocator: "Allocator") -> None:
        self.block = block
        self._allocator = allocator

    def tensor(self, like: torch.Tensor) -> torch.Tensor:
        """Return a tensor of this type, size and stride over the block."""
        typed = self.block.bytes.view(like.dtype)
        return typed.as_strided(like.shape, like.stride())

    def __del__(self) -> None:
        self._allocator.freed.append(self.block)


class Allocator:
    """Hands out blocks; one that the host has freed goes to the next who asks on its stream.

    That is how torch's own works: what still runs on the stream was queued before.
    """

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.peak_bytes = 0
        self.used_bytes = 0
        self.freed: deque[Block] = deque()  # by any thread, at any time
        self._free: list[Block] = []
        self._awaited: list[tuple[Block, list[tuple[Stream, int]]]] = []

    def take(self, num_bytes: int, stream: "Stream") -> Memory:
        """Return memory, or raise OutOfMemoryError."""
        num_bytes = max(1, -(-num_bytes // ALIGNMENT_BYTES)) * ALIGNMENT_BYTES
        self.collect()
        fitting = [x for x in self._free if x.stream is stream and x.num_bytes >= num_bytes]
        if fitting:
            block = min(reversed(fitting), key=lambda x: x.num_bytes)  # the last freed of those
            self._free.remove(block)
        elif self.used_bytes + num_bytes > self.total_bytes:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {num_bytes} bytes")
        else:
            block = Block(num_bytes, stream)
        self.used_bytes += block.num_bytes
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        return Memory(block, self)

    def collect(self) -> None:
        """Take back what was freed; a block with readers waits for what they have to do now."""
        while self.freed:
            block = self.freed.popleft()
            self.used_bytes -= block.num_bytes
            self._awaited.append((block, [(x, x.queued) for x in block.readers]))
            block.readers = set()
        awaited, self._awaited = self._awaited, []
        for block, reads in awaited:
            done = all(stream.done >= place for stream, place in reads)
            (self._free.append(block) if done else self._awaited.append((block, reads)))

    def empty_cache(self) -> None:
        """Forget the free blocks."""
        self.collect()
        self._free.clear()
