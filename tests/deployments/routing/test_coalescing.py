"""Small chunks travel together: when they wait, and what one caller's end does to the others."""

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar

import pytest

from deployments.errors import DeadlineError, TowerUnavailableError
from deployments.model.errors import EmbeddingError
from deployments.routing.coalescing import SMALL_SHARE, Coalescer

SHARE = SMALL_SHARE / 4
REQUEST = ContextVar("request", default="none")
LONG_S = 60.0  # no test waits that long: the timer plays no part


class Tower:
    """Doubles numbers when told to; remembers the calls and which of them were cancelled."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.cancelled: list[list[int]] = []
        self.contexts: list[str] = []
        self.called = asyncio.Semaphore(0)
        self.gate = asyncio.Semaphore(0)
        self.error: EmbeddingError | None = None

    async def send(self, chunks: Sequence[int]) -> list[int | EmbeddingError]:
        self.calls.append(list(chunks))
        self.contexts.append(REQUEST.get())
        self.called.release()
        try:
            await self.gate.acquire()
        except asyncio.CancelledError:
            self.cancelled.append(list(chunks))
            raise
        if self.error is not None:
            raise self.error
        return [2 * n if n >= 0 else DeadlineError(f"{n} came too late") for n in chunks]


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def tower() -> Tower:
    return Tower()


def coalescer_of(tower: Tower, max_calls: int = 1, max_wait_s: float = LONG_S):
    return Coalescer(tower.send, max_calls, max_wait_s)


async def ask(coalescer, numbers, share=SHARE):
    """Start a caller for each number, in order."""
    callers = [asyncio.create_task(coalescer.embed(number, share)) for number in numbers]
    await settle()
    return callers


async def test_nothing_waits_while_no_call_is_under_way(tower):
    """An idle Router sends at once; there is no window."""
    coalescer = coalescer_of(tower)
    for number in (1, 2):
        (caller,) = await ask(coalescer, [number])
        tower.gate.release()
        assert await caller == 2 * number
    assert tower.calls == [[1], [2]]


async def test_what_comes_during_a_call_goes_out_in_one(tower):
    """Nine callers cost two calls, and each has its own answer."""
    callers = await ask(coalescer_of(tower), range(9))
    assert tower.calls == [[0]]
    tower.gate.release()
    await settle()
    assert tower.calls == [[0], list(range(1, 9))]
    tower.gate.release()
    assert await asyncio.gather(*callers) == [2 * number for number in range(9)]


async def test_as_many_calls_as_allowed_are_under_way_before_others_wait(tower):
    """With three calls allowed the fourth chunk is the first to wait."""
    await ask(coalescer_of(tower, max_calls=3), range(5))
    assert tower.calls == [[0], [1], [2]]
    tower.gate.release()
    await settle()
    assert tower.calls[3:] == [[3, 4]]
    for _ in range(3):
        tower.gate.release()
    await settle()


async def test_large_chunks_neither_wait_nor_make_others_wait(tower):
    """A chunk over the small share goes at once by itself, and does not count as under way."""
    coalescer = coalescer_of(tower)
    large = await ask(coalescer, [1, 2], share=1.5 * SMALL_SHARE)
    small = await ask(coalescer, [3, 4])
    late = await ask(coalescer, [5], share=1.5 * SMALL_SHARE)
    assert tower.calls == [[1], [2], [3], [5]]  # 4 waits for 3, not for the large ones
    for _ in range(5):
        tower.gate.release()
        await settle()
    assert await asyncio.gather(*large, *small, *late) == [2, 4, 6, 8, 10]


async def test_a_call_carries_a_full_chunk_at_most(tower):
    """What does not fit waits for the next call, oldest first."""
    callers = await ask(coalescer_of(tower), range(12), share=SMALL_SHARE)
    for _ in range(3):
        tower.gate.release()
        await settle()
    assert tower.calls == [[0], list(range(1, 9)), [9, 10, 11]]
    assert len(await asyncio.gather(*callers)) == 12


async def test_a_slow_answer_holds_nobody_up_longer_than_the_wait(tower):
    """Though no call is answered, what waits goes out when its time has come."""
    callers = await ask(coalescer_of(tower, max_wait_s=0.01), range(3))
    for calls in ([0], [1, 2]):
        await tower.called.acquire()
        assert calls in tower.calls
    tower.gate.release(), tower.gate.release()
    assert await asyncio.gather(*callers) == [0, 2, 4]


async def test_each_call_under_way_doubles_the_wait_for_the_next(tower, monkeypatch):
    """Where calls are slow because there are many, they become fewer and larger."""
    waits_s, loop = [], asyncio.get_running_loop()

    def call_later(delay_s, overdue):
        waits_s.append(delay_s)
        loop.call_soon(overdue)
        return asyncio.Handle(overdue, (), loop)

    monkeypatch.setattr(loop, "call_later", call_later)
    coalescer = coalescer_of(tower, max_wait_s=3)
    callers = [caller for number in range(5) for caller in await ask(coalescer, [number])]
    assert tower.calls == [[0], [1], [2], [3], [4]]
    assert waits_s == [3, 6, 12, 24]
    for _ in callers:
        tower.gate.release()
    assert await asyncio.gather(*callers) == [0, 2, 4, 6, 8]


async def test_a_caller_who_leaves_while_waiting_is_not_sent(tower):
    """The next call goes without it, and the others have their rows."""
    callers = await ask(coalescer_of(tower), range(4))
    callers[2].cancel()
    tower.gate.release()
    await settle()
    assert tower.calls == [[0], [1, 3]]
    tower.gate.release()
    assert await asyncio.gather(callers[0], callers[1], callers[3]) == [0, 2, 6]


async def test_one_caller_who_leaves_cancels_nobody_else(tower):
    """A call goes on for the others in it; only the last to leave cancels it."""
    callers = await ask(coalescer_of(tower), range(4))
    tower.gate.release()
    await settle()
    callers[1].cancel(), callers[2].cancel()
    await settle()
    assert tower.cancelled == []
    tower.gate.release()
    assert await callers[3] == 6

    callers = await ask(coalescer_of(tower), range(10, 12))
    callers[0].cancel()
    await settle()
    assert tower.cancelled == [[10]]  # a lone caller's call is cancelled with it


async def test_the_last_caller_to_leave_cancels_the_call(tower):
    """Nothing is computed for callers who are all gone, and the next ones are served."""
    coalescer = coalescer_of(tower)
    callers = await ask(coalescer, range(3))
    tower.gate.release()
    await settle()
    callers[1].cancel(), callers[2].cancel()
    await settle()
    assert tower.cancelled == [[1, 2]]
    (caller,) = await ask(coalescer, [7])
    tower.gate.release()
    assert await caller == 14


async def test_a_chunk_that_fails_fails_alone(tower):
    """An error in place of an answer is raised to its own caller."""
    callers = await ask(coalescer_of(tower), [0, 1, -2, 3])
    tower.gate.release(), tower.gate.release()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(results[2], DeadlineError)
    assert [results[0], results[1], results[3]] == [0, 2, 6]


async def test_a_call_that_fails_fails_for_each_of_its_callers_and_for_no_other(tower):
    """Everyone in the call hears of it; the call after it works."""
    coalescer = coalescer_of(tower)
    callers = await ask(coalescer, range(3))
    tower.gate.release()
    await settle()
    tower.error = TowerUnavailableError("gone")
    tower.gate.release()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert results[0] == 0
    assert all(isinstance(result, TowerUnavailableError) for result in results[1:])
    tower.error = None
    (caller,) = await ask(coalescer, [5])
    tower.gate.release()
    assert await caller == 10


async def test_too_few_answers_leave_nobody_waiting():
    """A tower that loses an answer fails the call for each of its callers."""

    async def send(chunks):
        return [2 * chunk for chunk in chunks][:1]

    coalescer = Coalescer(send, 1, LONG_S)
    results = await asyncio.gather(
        *(coalescer.embed(number, SHARE) for number in range(3)), return_exceptions=True
    )
    assert results[0] == 0
    assert [type(result) for result in results[1:]] == [ValueError] * 2


async def test_a_call_for_several_is_made_in_the_context_of_none(tower):
    """Ray Serve ends the calls of a request that ends; one caller's call stays in its context."""
    coalescer = coalescer_of(tower)
    callers = []
    for name in ("a", "b", "c"):
        REQUEST.set(name)
        callers += await ask(coalescer, [1])
    tower.gate.release(), tower.gate.release()
    await asyncio.gather(*callers)
    assert tower.calls == [[1], [1, 1]]
    assert tower.contexts == ["a", "none"]


async def test_a_call_that_is_ended_from_outside_leaves_nobody_waiting(tower):
    """Its callers hear that they may try again."""
    coalescer = coalescer_of(tower)
    callers = await ask(coalescer, range(3))
    tower.gate.release()
    await settle()
    (task,) = coalescer._under_way
    task.cancel()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(result) for result in results[1:]] == [TowerUnavailableError] * 2
    (caller,) = await ask(coalescer, [5])
    tower.gate.release()
    assert await caller == 10
