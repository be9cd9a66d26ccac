"""Small chunks travel together: when they wait, and what one caller's end does to the others."""

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar

import pytest

from deployments.errors import DeadlineError, TowerUnavailableError
from deployments.model.errors import EmbeddingError
from deployments.routing.coalescing import ALONE_SHARE, Coalescer

SHARE = 1 / 32
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
        self.worked_s = 0.0

    def device_s(self, _: int) -> float:
        return self.worked_s

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
    return Coalescer(tower.send, tower.device_s, max_calls, max_wait_s, LONG_S)


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


async def test_a_chunk_that_leaves_little_room_goes_at_once(tower):
    """It would wait for company that does not fit; others wait for it as for any call."""
    coalescer = coalescer_of(tower)
    large = await ask(coalescer, [1, 2], share=1.2 * ALONE_SHARE)
    small = await ask(coalescer, [3, 4])
    assert tower.calls == [[1], [2]]
    for _ in range(3):
        tower.gate.release()
        await settle()
    assert await asyncio.gather(*large, *small) == [2, 4, 6, 8]
    assert tower.calls == [[1], [2], [3, 4]]


async def test_a_call_carries_a_full_chunk_at_most(tower):
    """What does not fit waits for the next call, oldest first."""
    callers = await ask(coalescer_of(tower), range(8), share=0.3)
    for _ in range(4):
        tower.gate.release()
        await settle()
    assert tower.calls == [[0], [1, 2, 3], [4, 5, 6], [7]]
    assert len(await asyncio.gather(*callers)) == 8


async def test_what_fills_a_call_goes_out_though_others_are_under_way(tower):
    """Several replicas have work at once; what is left over waits on."""
    callers = await ask(coalescer_of(tower), range(7), share=1 / 4)
    assert tower.calls == [[0], [1, 2, 3, 4]]
    tower.gate.release(), tower.gate.release()
    await settle()
    assert tower.calls[2:] == [[5, 6]]
    tower.gate.release()
    assert len(await asyncio.gather(*callers)) == 7


async def test_a_slow_answer_holds_nobody_up_longer_than_the_wait(tower):
    """Though no call is answered, what waits goes out when its time has come."""
    callers = await ask(coalescer_of(tower, max_wait_s=0.01), range(3))
    for calls in ([0], [1, 2]):
        await tower.called.acquire()
        assert calls in tower.calls
    tower.gate.release(), tower.gate.release()
    assert await asyncio.gather(*callers) == [0, 2, 4]


@pytest.mark.parametrize(
    ("took_s", "worked_s", "wait_s"),
    [(0.1, 0.04, 0.03), (0.1, 0.1, 0.003), (0.05, 0.048, 0.003), (90, 0, 0.05)],
    ids=["half of the rest", "all work", "at least", "a tower that was starting"],
)
async def test_the_wait_is_half_of_what_the_last_call_waited(
    tower, monkeypatch, took_s, worked_s, wait_s
):
    """A tower with a queue could not begin sooner, so fewer calls carry more; an idle one can."""
    now_s, waits_s, loop = 0.0, [], asyncio.get_running_loop()
    monkeypatch.setattr(loop, "time", lambda: now_s)

    def call_later(delay_s, overdue):
        waits_s.append(delay_s)
        return asyncio.TimerHandle(now_s + delay_s, overdue, (), loop)

    tower.worked_s = worked_s
    coalescer = Coalescer(tower.send, tower.device_s)
    callers = await ask(coalescer, [0])
    now_s = took_s
    tower.gate.release()
    await settle()
    monkeypatch.setattr(loop, "call_later", call_later)
    callers += await ask(coalescer, [1, 2])
    assert waits_s == [pytest.approx(wait_s)]
    tower.gate.release(), tower.gate.release()
    await settle()
    assert await asyncio.gather(*callers) == [0, 2, 4]


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

    coalescer = Coalescer(send, float, 1, LONG_S)
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
