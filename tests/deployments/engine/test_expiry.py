"""Under overload the device's time goes to those whose callers will still be there."""

import asyncio

import pytest

from deployments.engine.batcher import Batcher
from deployments.engine.call import Call, QueuedItem
from deployments.engine.queue import WorkQueue
from deployments.errors import DeadlineError
from deployments.messages import Lane

BATCH = 100
PACE_PER_S = 100  # a full batch takes a second


def queue_of(*expires_s: float) -> WorkQueue[int, int]:
    """Ten units each, ten items a batch."""
    queue: WorkQueue[int, int] = WorkQueue(BATCH, 10)
    for number, end_s in enumerate(expires_s):
        push(queue, number, 10, "interactive", end_s)
    return queue


def push(queue, number: int, cost: int, lane: Lane, end_s: float) -> QueuedItem[int, int]:
    item = QueuedItem(number, cost, Call(1, cost, lane, timeout_s=end_s))
    queue.push(item)
    return item


def test_the_oldest_that_come_too_late_are_given_up():
    """Twenty items, of which the first twelve end too soon; a full batch is always kept."""
    queue = queue_of(*[1.0] * 12, *[5.0] * 8)
    assert [entry.item for entry in queue.expire(1.0, PACE_PER_S)] == list(range(10))
    assert queue.waiting_cost == BATCH
    assert [entry.item for entry in queue.take()] == list(range(10, 20))


def test_nothing_is_given_up_that_can_be_done_in_time():
    """The time itself is in time."""
    queue = queue_of(*[2.0] * 20)
    assert list(queue.expire(1.0, PACE_PER_S)) == []
    assert queue.waiting_items == 20


def test_what_one_batch_holds_is_never_given_up():
    """A device with nothing else to do tries, however late it is."""
    queue = queue_of(*[0.0] * 10)
    assert list(queue.expire(100.0, PACE_PER_S)) == []


@pytest.mark.parametrize("lane", ["interactive", "bulk"])
@pytest.mark.parametrize("cost", [1, 50])
def test_both_lanes_and_sizes_are_looked_at(lane, cost):
    """The late item is the oldest of its own lane and, if it is interactive, of its size only."""
    queue: WorkQueue[int, int] = WorkQueue(BATCH, 10)
    others = {"bulk": [("interactive", 1), ("interactive", 50)]}.get(
        lane, [("bulk", cost), (lane, 51 - cost)]
    )
    for other, size in others:
        for _ in range(BATCH):
            push(queue, 0, size, other, 9.0)
    late = push(queue, 99, cost, lane, 0.5)
    assert list(queue.expire(0.0, PACE_PER_S)) == [late]


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def overload(timeout_s: float) -> tuple[int, int, int]:
    """Offer twice what the device can do for a minute; return in time, late and refused."""
    clock, waiting = Clock(), []
    done = asyncio.Event()

    async def run(items: list[float]) -> list[float]:
        clock.now_s += 10 * len(items) / PACE_PER_S
        await asyncio.sleep(0)
        return [clock.now_s] * len(items)

    batcher: Batcher[float, float] = Batcher(run, BATCH, 10, clock=clock)

    async def ask() -> str:
        arrival_s = clock.now_s
        (end_s,) = (await batcher.submit([arrival_s], [10], timeout_s=timeout_s)).results
        if isinstance(end_s, Exception):
            assert isinstance(end_s, DeadlineError)
            return "refused"
        return "in time" if end_s <= arrival_s + LIMIT_S else "late"

    async def arrive() -> None:
        for number in range(1200):
            while clock.now_s < number / 20:  # noqa: ASYNC110 - twenty a second; ten can be done
                await asyncio.sleep(0)
            waiting.append(asyncio.create_task(ask()))
        done.set()

    arriving = asyncio.create_task(arrive())
    while not done.is_set():
        if not batcher.outstanding_cost:
            clock.now_s += 0.01
        await asyncio.sleep(0)
    await arriving
    found = await asyncio.gather(*waiting)
    return found.count("in time"), found.count("late"), found.count("refused")


LIMIT_S = 4.0


async def test_at_twice_the_load_half_is_answered_and_all_of_it_in_time():
    """Without a time limit of its own, the same queue answers almost everybody too late."""
    in_time, late, refused = await overload(timeout_s=LIMIT_S)
    assert late <= 20  # the last batch that is left, once no more come
    assert in_time >= 0.9 * 600
    assert in_time + late + refused == 1200
    in_time, late, refused = await overload(timeout_s=1e9)
    assert in_time < 0.25 * 600
    assert refused == 0
