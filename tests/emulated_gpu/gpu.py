"""The emulated GPU itself, and how it takes the place of `torch.cuda`."""

import io
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any
from weakref import ref

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._device import _device_constructors

import deployments.model.runtime.runners  # noqa: F401 - names types of torch.cuda at its import
from tests.emulated_gpu.memory import Allocator, Memory
from tests.emulated_gpu.streams import WAIT_S, Event, Graph, PerThread, Stream, Work
from tests.emulated_gpu.tensors import CudaTensor, Dispatcher, EverywhereMode

GIB = 2**30


class EmulatedGpu:
    """One GPU.

    Attributes:
        syncs: what made the host wait for the device, in order.
        operators: how many were queued; `fails_at` is the number of one that finds no memory.
        running: clear it, and nothing that waits for the device comes back until it is set.
        elapsed_ms: what pairs of events say of the time between them.
    """

    def __init__(self, name: str, capability: tuple[int, int], total_bytes: int) -> None:
        self.name, self.capability = name, capability
        self.allocator = Allocator(total_bytes)
        self.syncs: list[str] = []
        self.operators = self.replays = 0
        self.fails_at = -1
        self.running = threading.Event()
        self.running.set()
        self.elapsed_ms: Iterator[float] = itertools.repeat(1.0)
        self.working = threading.RLock()
        self.threads = PerThread()
        self.streams: list[Stream] = []
        self.default_stream = Stream(self)
        self._pinned: dict[int, ref[Tensor]] = {}

    def current_stream(self, _: object = None) -> Stream:
        return self.threads.stream or self.default_stream

    @contextmanager
    def on_stream(self, stream: Stream | None) -> Iterator[None]:
        before = self.threads.stream
        self.threads.stream = stream or before
        try:
            yield
        finally:
            self.threads.stream = before

    def add(self, work: Work) -> None:
        """Queue work on the current stream, or record it."""
        graph = self.threads.graph
        if graph is not None:
            graph.tape.append(work)
        else:
            self.current_stream().add(work)

    def take(self, num_bytes: int) -> Memory:
        graph = self.threads.graph
        pool = graph.pool if graph is not None and graph.pool is not None else self.allocator
        return pool.take(num_bytes, self.current_stream())

    def wait(self, why: str) -> None:
        """Note that the host waits for the device; impossible inside of a capture."""
        if self.threads.graph is not None:
            raise torch.AcceleratorError(f"not permitted when stream is capturing: {why}")
        self.syncs.append(why)
        assert self.running.wait(WAIT_S)

    def synchronize(self, _: object = None) -> None:
        self.wait("synchronize")
        self.run_all()

    def run_all(self) -> None:
        for stream in list(self.streams):
            stream.run_up_to(stream.queued)

    def count_operator(self, name: str) -> None:
        self.operators += 1
        if self.operators == self.fails_at:
            raise torch.OutOfMemoryError(f"CUDA out of memory. In {name}, operator {self.fails_at}")

    def pin(self, tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        self._pinned[copy.untyped_storage().data_ptr()] = ref(copy)
        return copy

    def is_pinned(self, tensor: Tensor) -> bool:
        base = self._pinned.get(tensor.untyped_storage().data_ptr())
        return base is not None and base() is not None

    def on_device(self, host: Tensor) -> CudaTensor:
        """Return a tensor of the GPU, written at once: the host has waited for it."""
        memory = self.take(host.numel() * host.element_size())
        target = memory.tensor(host.contiguous())
        target.copy_(host)
        return CudaTensor(target, memory, self)

    def decode_jpegs(self, sources: list[Tensor], _mode: int, _device: object) -> list[Tensor]:
        """Decode as torchvision does: memory of the caller's stream, written by another one."""
        images = [Image.open(io.BytesIO(x.numpy().tobytes())).convert("RGB") for x in sources]
        pixels = [torch.from_numpy(np.array(x)).permute(2, 0, 1) for x in images]
        return [self.on_device(x.contiguous()) for x in pixels]


@contextmanager
def emulated_gpu(
    name: str = "H100", capability: tuple[int, int] = (9, 0), total_bytes: int = 4 * GIB
) -> Iterator[EmulatedGpu]:
    """Put an emulated GPU in the place of `torch.cuda`, for all threads started in the block."""
    _device_constructors()  # torch keeps them: it must not keep those below
    gpu = EmulatedGpu(name, capability, total_bytes)
    mode, run = EverywhereMode(gpu), threading.Thread.run
    interval_s, num_threads = sys.getswitchinterval(), torch.get_num_threads()
    torch.set_num_threads(1)  # the products are small

    def run_with_gpu(thread: threading.Thread) -> None:
        with EverywhereMode(gpu):
            run(thread)

    with pytest.MonkeyPatch.context() as patch:
        for attribute, value in replacements(gpu).items():
            patch.setattr(f"torch.cuda.{attribute}", value)
        for attribute in ("tensor", "as_tensor", "empty"):
            function = partial(made, gpu, getattr(torch, attribute))
            patch.setattr(torch, attribute, function)
        patch.setattr(torch, "compile", lambda function, **_: function)
        move, dispatcher = Tensor.to, Dispatcher(gpu)

        def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            moves = isinstance(tensor, CudaTensor) or any(map(names_gpu, (*args, *kwargs.values())))
            return (dispatcher.to if moves else move)(tensor, *args, **kwargs)

        patch.setattr(Tensor, "to", to)
        patch.setattr(Tensor, "pin_memory", lambda tensor, *_: gpu.pin(tensor))
        patch.setattr(torch.ops.image, "decode_jpegs_cuda", gpu.decode_jpegs, raising=False)
        patch.setattr(threading.Thread, "run", run_with_gpu)
        overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with mode:
                yield gpu
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
            sys.setswitchinterval(interval_s)
            torch.set_num_threads(num_threads)


def names_gpu(x: object) -> bool:
    """Tell whether an argument of `Tensor.to` means the GPU."""
    device = getattr(x, "device", x)
    return isinstance(device, (str, torch.device)) and torch.device(device).type == "cuda"


def replacements(gpu: EmulatedGpu) -> dict[str, Any]:
    """Return what stands for the parts of `torch.cuda`, by name."""
    major, minor = gpu.capability
    total = gpu.allocator.total_bytes
    facts = SimpleNamespace(name=gpu.name, major=major, minor=minor, total_memory=total)
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_properties": lambda _=None: facts,
        "get_device_capability": lambda _=None: gpu.capability,
        "mem_get_info": lambda _=None: (total - gpu.allocator.used_bytes, total),
        "empty_cache": gpu.allocator.empty_cache,
        "synchronize": gpu.synchronize,
        "reset_peak_memory_stats": lambda _=None: setattr(gpu.allocator, "peak_bytes", 0),
        "max_memory_reserved": lambda _=None: gpu.allocator.peak_bytes,
        "device": lambda _: nullcontext(),
        "current_stream": gpu.current_stream,
        "stream": gpu.on_stream,
        "Stream": lambda *_, **__: Stream(gpu),
        "Event": lambda *_, **__: Event(gpu),
        "CUDAGraph": lambda: Graph(gpu),
        "graph": lambda graph, pool, stream, **_: graph.recording(pool, stream),
        "graph_pool_handle": lambda: Allocator(total),
        "is_current_stream_capturing": lambda: gpu.threads.graph is not None,
    }


def made(gpu: EmulatedGpu, make: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """Make a tensor on the host, then move it where it was asked for: a copy that waits."""
    device, pinned = kwargs.pop("device", None), kwargs.pop("pin_memory", False)
    if device is None and args and isinstance(args[0], CudaTensor):
        return args[0]
    if torch.device(device or "cpu").type == "cuda":
        if args and isinstance(args[0], CudaTensor):
            return args[0]
        return make(*args, **kwargs).to(device)
    if device is not None:
        kwargs["device"] = device
    tensor = make(*args, **kwargs)
    return gpu.pin(tensor) if pinned else tensor
