"""The device's thread, and what its errors mean."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

import deployments.engine.device as device_module
from deployments.engine.device import FORGET, Device
from deployments.errors import TowerUnavailableError


async def test_functions_run_one_after_the_other_on_one_thread_of_their_own():
    """What is submitted while another runs waits for it; another thread does not."""
    device = Device("cpu")
    release = threading.Event()
    first = device.submit(release.wait, 10)
    second = device.submit(threading.current_thread)
    with ThreadPoolExecutor(1) as other:
        beside = device.submit_to(other, threading.current_thread).result(10)
    assert not second.done()
    release.set()
    assert first.result(10)
    assert second.result(10) is not beside
    assert await device.run(threading.current_thread) is second.result()


async def test_lack_of_memory_is_a_memory_error_and_the_device_stays_healthy():
    """Torch's own class would tie the batcher to torch."""
    device = Device("cpu")

    def run() -> None:
        raise torch.OutOfMemoryError("out of memory\nand much more")

    with pytest.raises(MemoryError, match=r"^out of memory$"):
        await device.run(run)
    device.check_health()


async def test_a_broken_device_is_unavailable_and_unhealthy_from_then_on():
    """After such an error no call of the process to the device works again."""
    device = Device("cpu")

    def run() -> None:
        raise torch.AcceleratorError("an illegal memory access")

    device.check_health()
    with pytest.raises(TowerUnavailableError, match="lost"):
        await device.run(run)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        device.check_health()


async def test_an_error_of_the_function_itself_is_passed_on():
    """It says nothing about the device."""
    device = Device("cpu")
    with pytest.raises(ZeroDivisionError):
        await device.run(divmod, 1, 0)
    device.check_health()


async def test_a_cpu_gives_memory_back_now_and_then(monkeypatch):
    """Once a period, however many batches there are."""
    trims = []
    monkeypatch.setattr("deployments.model.runtime.memory.trim", lambda: trims.append(1))
    device = Device("cpu")
    monkeypatch.setattr("deployments.engine.device.TRIM_PERIOD_S", 0)
    await device.run(int)
    assert len(trims) == 1
    monkeypatch.setattr("deployments.engine.device.TRIM_PERIOD_S", 3600)
    await device.run(int)
    assert len(trims) == 1


async def test_a_gpu_remembers_the_longest_launch_of_late(monkeypatch):
    """The next batch is handed over so long before the last one ends; short launches forget it."""
    now_s = 0.0
    monkeypatch.setattr(device_module, "time", SimpleNamespace(monotonic=lambda: now_s))
    device = Device("cpu")
    device.is_cpu = False  # its thread launches, another waits

    async def launched(seconds: float) -> float:
        def launch():
            nonlocal now_s
            now_s += seconds
            return list

        assert await device.run_launched(launch) == []
        return device.launch_s

    assert await launched(0.02) == pytest.approx(0.02)
    assert await launched(0.001) == pytest.approx(0.02 * FORGET)
    assert await launched(0.03) == pytest.approx(0.03)
