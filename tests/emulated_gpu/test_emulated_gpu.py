"""The emulated GPU has the traps of a real one, or tests with it could not fail."""

import gc

import pytest
import torch

from tests.emulated_gpu.gpu import emulated_gpu

GPU = torch.device("cuda")


@pytest.fixture
def gpu():
    with emulated_gpu(total_bytes=2**20) as emulated, torch.inference_mode():
        yield emulated


def capture(work):
    """Return a graph of what `work` queues, and its result."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph, pool=torch.cuda.graph_pool_handle(), stream=stream):
        return graph, work()


def test_numbers_come_when_the_host_waits_for_them(gpu):
    """A queued copy to the host has nothing to read before its event."""
    x = torch.ones(3, device=GPU) * 2
    host, done = x.to("cpu", non_blocking=True), torch.cuda.Event()
    host.zero_()
    done.record()
    assert not host.any()
    done.synchronize()
    assert host.tolist() == [2, 2, 2]
    assert gpu.syncs == ["event.synchronize"]


def test_host_memory_is_read_late_and_only_if_it_is_pinned(gpu):
    """What changes it before the copy has run changes what is copied; other memory is awaited."""
    pinned = torch.ones(2).pin_memory()
    late = pinned.to(GPU, non_blocking=True)
    pinned.fill_(5)
    assert late.tolist() == [5, 5]
    waits = len(gpu.syncs)
    torch.ones(2).to(GPU, non_blocking=True)
    assert len(gpu.syncs) == waits + 1


def test_devices_do_not_mix(gpu):
    """Tensors of the host beside those of the GPU raise; single numbers do not."""
    x = torch.ones(3, device=GPU)
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    assert (x + torch.tensor(1.0)).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "wait", [lambda x: x.sum().item(), lambda x: x.to("cpu"), lambda _: torch.cuda.synchronize()]
)
def test_nothing_waits_inside_of_a_capture(gpu, wait):
    """Asking for a value there raises, as the driver does."""
    x = torch.ones(3, device=GPU)
    with pytest.raises(torch.AcceleratorError, match="capturing"):
        capture(lambda: wait(x))


def test_a_graph_replays_on_the_memory_that_it_was_captured_with(gpu):
    """It runs nothing at its capture, and takes its inputs from where they were."""
    x = torch.ones(2, device=GPU)
    graph, doubled = capture(lambda: x * 2)
    assert doubled.isnan().all().item()
    x.copy_(torch.full((2,), 4.0))
    graph.replay()
    assert doubled.tolist() == [8, 8]


def test_freed_memory_goes_to_the_next_on_its_stream_at_once(gpu):
    """Another stream does not get it, and a stream that still reads it is waited for."""
    x = torch.ones(4, device=GPU)
    memory = x.host.data_ptr()
    other = torch.cuda.Stream()
    del x
    with torch.cuda.stream(other):
        elsewhere = torch.empty(4, device=GPU)
    here = torch.empty(4, device=GPU)
    assert elsewhere.host.data_ptr() != memory == here.host.data_ptr()
    with torch.cuda.stream(other):
        here + 1
        here.record_stream(other)
    del here
    third = torch.empty(4, device=GPU)
    assert third.host.data_ptr() != memory
    other.synchronize()
    assert torch.empty(4, device=GPU).host.data_ptr() == memory


def test_memory_is_counted_and_ends(gpu):
    """What is freed can be had again; what is too much raises torch's own error."""
    before = gpu.allocator.used_bytes
    x = torch.empty(2**19, dtype=torch.uint8, device=GPU)
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(2**19 + 1, dtype=torch.uint8, device=GPU)
    del x
    gc.collect()
    torch.cuda.empty_cache()
    assert gpu.allocator.used_bytes == before
