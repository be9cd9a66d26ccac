"""The batcher: when it chooses, what it does with failures and callers who left."""

import asyncio
import random
from collections.abc import Awaitable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.engine.batcher import Batcher, within
from deployments.engine.call import Call
from deployments.errors import DeadlineError
from deployments.messages import Terms


class Device:
    """Doubles numbers, one batch at a time, when told to; item 666 is poison."""

    def __init__(self, gated: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Semaphore(0)
        self.gated = gated
        self.busy = False

    async def run(self, items: list[int]) -> list[int]:
        assert not self.busy, "two batches at once"
        self.busy = True
        self.batches.append(items)
        try:
            if self.gated:
                await self.gate.acquire()
            else:
                await asyncio.sleep(0)
            if 666 in items:
                raise ValueError("poison")
            return [2 * item for item in items]
        finally:
            self.busy = False


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


async def results(call: Awaitable[Call[int]]) -> list[int | Exception]:
    """Wait for a call and return its results."""
    return (await call).results


def batcher_on(device: Device, max_cost: int = 100, max_items: int = 10) -> Batcher[int, int]:
    return Batcher(device.run, max_cost, max_items)


async def test_an_idle_server_runs_an_item_at_once():
    """No waiting window: the first item is a batch of its own."""
    device = Device()
    assert await results(batcher_on(device).submit([21], [1])) == [42]
    assert device.batches == [[21]]


async def test_a_batch_is_chosen_when_the_device_is_free_not_before():
    """Items that come while a batch runs travel together in the next one."""
    device = Device(gated=True)
    batcher = batcher_on(device)
    calls = [asyncio.create_task(batcher.submit([0], [10]))]
    await settle()
    for number in range(1, 9):
        calls.append(asyncio.create_task(batcher.submit([number], [10])))
        await settle()
    device.gate.release()
    await settle()
    device.gate.release()
    assert [call.results for call in await asyncio.gather(*calls)] == [
        [2 * number] for number in range(9)
    ]
    assert device.batches == [[0], list(range(1, 9))]


async def test_results_come_back_in_the_order_of_the_call():
    """A call cut over several batches has its results in its own order."""
    call = batcher_on(Device()).submit(list(range(35)), [7] * 35)
    assert await results(call) == [2 * number for number in range(35)]


async def test_one_bad_item_fails_alone():
    """A failing batch is run in halves until the bad item is by itself."""
    device = Device()
    found = await results(batcher_on(device).submit([1, 2, 666, 4, 5], [1] * 5))
    assert [r for r in found if not isinstance(r, Exception)] == [2, 4, 8, 10]
    assert isinstance(found[2], ValueError)


async def test_an_item_whose_caller_left_is_not_run():
    """Cancelling a call drops its items that wait; others go on."""
    device = Device(gated=True)
    batcher = batcher_on(device)
    first = asyncio.create_task(batcher.submit([1], [1]))
    await settle()
    left = asyncio.create_task(batcher.submit([2, 3], [1, 1]))
    stays = asyncio.create_task(batcher.submit([4], [1]))
    await settle()
    left.cancel()
    await settle()
    for _ in range(2):
        device.gate.release()
        await settle()
    assert (await results(first), await results(stays)) == ([2], [8])
    assert device.batches == [[1], [4]]
    assert batcher.queue.waiting_items == 0


async def test_a_device_that_answers_too_few_fails_the_items_not_the_worker():
    """A wrong number of results is an error of the items, and the next call works."""
    short = True

    async def run(items: list[int]) -> list[int]:
        return [] if short else items

    batcher: Batcher[int, int] = Batcher(run, 10, 10)
    (result,) = await results(batcher.submit([1], [1]))
    assert isinstance(result, RuntimeError)
    short = False
    assert await results(batcher.submit([1], [1])) == [1]


async def test_health_fails_when_a_batch_makes_no_progress():
    """With a fake clock: batches took a second each, one that takes 21 is stuck."""
    now = 0.0
    device = Device(gated=True)
    batcher: Batcher[int, int] = Batcher(device.run, 10, 10, clock=lambda: now)
    batcher.check_health()
    for elapsed_s in (1.0, 0.0):
        call = asyncio.create_task(batcher.submit([1], [1]))
        await settle()
        now += elapsed_s
        if elapsed_s:
            device.gate.release()
            await call
    now += 19.0
    batcher.check_health()
    now += 2.0
    with pytest.raises(RuntimeError, match="21 s"):
        batcher.check_health()
    device.gate.release()
    await call
    batcher.check_health()


async def test_a_caller_out_of_time_gets_a_deadline_error_and_its_items_are_dropped():
    """`within` ends the wait, and the device never sees the item."""
    device = Device(gated=True)
    batcher = batcher_on(device)
    first = asyncio.create_task(batcher.submit([1], [1]))
    await settle()
    with pytest.raises(DeadlineError):
        await within(Terms("interactive", 0.01), batcher.submit([2], [1]))
    device.gate.release()
    await first
    await settle()
    assert device.batches == [[1]]
    assert batcher.outstanding_cost == 0


class Gpu:
    """Runs what it is given one after the other; each batch ends when it is told to."""

    def __init__(self) -> None:
        self.begun = [asyncio.Event() for _ in range(3)]
        self.ends = [asyncio.Event() for _ in range(3)]

    async def run(self, items: list[int]) -> list[int]:
        (number,) = items
        self.begun[number].set()
        await self.ends[number].wait()
        return items

    def has_begun(self) -> list[bool]:
        return [event.is_set() for event in self.begun]


async def busy_gpu(
    lead_s: float | None,
) -> tuple[Gpu, Batcher[int, int], list[asyncio.Task[Call[int]]]]:
    """A batcher that takes a batch to last 0.1 s, and has three to run."""
    gpu = Gpu()
    lead = None if lead_s is None else lambda: lead_s
    batcher: Batcher[int, int] = Batcher(gpu.run, 10, 10, lead_s=lead)
    batcher.watchdog.expected_s = lambda _: 0.1  # type: ignore[method-assign]
    calls = [asyncio.create_task(batcher.submit([n], [10])) for n in range(3)]
    await settle()
    return gpu, batcher, calls


async def test_a_gpu_is_handed_the_next_batch_shortly_before_the_last_one_ends():
    """A batch of 10 takes 0.1 s: the next goes out 0.08 s before that, and a third one waits."""
    gpu, _, calls = await busy_gpu(lead_s=0.08)
    assert gpu.has_begun() == [True, False, False]
    async with asyncio.timeout(5):
        await gpu.begun[1].wait()
    await settle()
    assert gpu.has_begun() == [True, True, False]  # two at most
    gpu.ends[0].set()
    await calls[0]
    async with asyncio.timeout(5):
        await gpu.begun[2].wait()
    for end in gpu.ends:
        end.set()
    assert [call.results for call in await asyncio.gather(*calls)] == [[0], [1], [2]]


async def test_without_a_lead_the_next_batch_waits_for_the_end_of_the_last():
    """The negative control, and what a CPU does."""
    gpu, _, calls = await busy_gpu(lead_s=None)
    await asyncio.sleep(0.15)
    assert gpu.has_begun() == [True, False, False]
    for end in gpu.ends:
        end.set()
    await asyncio.gather(*calls)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_random_calls_cancellations_and_failures_all_end_once(seed):
    """Every call that is not cancelled gets each of its results, in order."""

    async def scenario() -> None:
        chance = random.Random(seed)
        device = Device()
        batcher = batcher_on(device, max_cost=50, max_items=6)

        async def call() -> None:
            items = [chance.choice([1, 2, 3, 666]) for _ in range(chance.randrange(12))]
            task = asyncio.create_task(
                batcher.submit(items, [chance.randrange(1, 60)] * len(items))
            )
            if chance.random() < 0.3:
                await asyncio.sleep(0)
                task.cancel()
            try:
                found = await results(task)
            except asyncio.CancelledError:
                return
            for item, result in zip(items, found, strict=True):
                assert isinstance(result, ValueError) if item == 666 else result == 2 * item

        await asyncio.gather(*(call() for _ in range(20)))
        assert batcher.queue.waiting_items == batcher.queue.waiting_cost == 0

    asyncio.run(scenario())
