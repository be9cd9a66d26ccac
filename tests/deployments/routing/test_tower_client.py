"""The Router's side of a tower: a second try for a lost replica, and which one answered."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from ray.exceptions import ActorUnavailableError

from deployments.errors import DeadlineError, TowerUnavailableError
from deployments.messages import Terms, TextChunk, TowerAnswers, TowerRows
from deployments.routing import tower_client
from deployments.routing.tower_client import TowerClient

LOST = ActorUnavailableError("the node has gone", None)
SMALL = 0.01


def chunk(number: int, lane="interactive") -> TextChunk:
    return TextChunk.of([np.array([number, 0], np.int32)], Terms(lane, 60))


def rows(number: float, error=None) -> TowerRows:
    return TowerRows(np.full((1, 4), number, np.float32), {0: error} if error else {})


class Response:
    """What a handle gives for a call: to be awaited or cancelled."""

    def __init__(self, outcome: object, gate: asyncio.Event) -> None:
        self.outcome, self.gate, self.cancelled = outcome, gate, False

    def __await__(self):
        yield from self.gate.wait().__await__()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """A tower's handle whose calls end as told: an error, or a function of the numbers sent."""

    def __init__(self, *outcomes: object) -> None:
        self.outcomes = list(outcomes)
        self.calls: list[list[int]] = []
        self.responses: list[Response] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.embed = self.ready = self

    def remote(self, *args):
        numbers = [int(x.token_ids[0]) for x in args[0]] if args else []
        self.calls.append(numbers)
        outcome = self.outcomes.pop(0)
        if callable(outcome):
            outcome = TowerAnswers(tuple(outcome(number) for number in numbers), "v1")
        self.responses.append(Response(outcome, self.gate))
        return self.responses[-1]


@pytest.fixture
def retried():
    return []


async def together(client, *numbers, lane="interactive"):
    """Let callers ask at once; return their answers or errors."""
    asking = [client.embed(chunk(number, lane), SMALL) for number in numbers]
    return await asyncio.gather(*asking, return_exceptions=True)


async def test_a_lost_replica_costs_every_chunk_of_its_call_one_more_try(retried):
    """The whole call is sent again, once, and counted once."""
    handle = Handle(rows, LOST, rows)
    first, second, third = await together(TowerClient("text", handle, retried.append), 1, 2, 3)
    assert handle.calls == [[1], [2, 3], [2, 3]]
    assert [int(answer[0].rows[0, 0]) for answer in (first, second, third)] == [1, 2, 3]
    assert retried == ["text"]


async def test_a_second_loss_is_told_to_each_caller_of_the_call(retried):
    """Nobody waits for a third try; the call before it stands."""
    handle = Handle(rows, LOST, LOST)
    first, *others = await together(TowerClient("text", handle, retried.append), 1, 2, 3)
    assert int(first[0].rows[0, 0]) == 1
    assert [type(error) for error in others] == [TowerUnavailableError] * 2
    assert len(handle.calls) == 3


async def test_a_replica_without_its_device_is_as_good_as_lost(retried):
    """Its answer that one chunk could not be run sends the call again; a deadline does not."""
    gone = TowerUnavailableError("the device is lost")
    handle = Handle(lambda number: rows(0, gone), rows, lambda number: DeadlineError("late"))
    client = TowerClient("text", handle, retried.append)
    (answer,) = await together(client, 1)
    assert int(answer[0].rows[0, 0]) == 1
    (late,) = await together(client, 2)
    assert isinstance(late, DeadlineError)
    assert handle.calls == [[1], [1], [2]]


async def test_lanes_do_not_travel_together(retried):
    """An interactive chunk never waits for the answer to a bulk one in the same call."""
    handle = Handle(*[rows] * 4)
    client = TowerClient("text", handle, retried.append)
    await asyncio.gather(together(client, 1, 2), together(client, 11, 12, lane="bulk"))
    assert sorted(handle.calls) == [[1], [2], [11], [12]]


async def test_a_query_travels_with_queries_only(retried):
    """A call is as slow as its slowest part, and nothing waits for one of another kind."""
    handle = Handle(rows, rows, rows, rows)
    handle.gate.clear()
    client = TowerClient("text", handle, retried.append)
    shares = (0.1, 1), (0.1, 2), (SMALL, 3), (SMALL, 4), (SMALL, 5), (0.1, 6)
    asking = [asyncio.create_task(client.embed(chunk(number), share)) for share, number in shares]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert handle.calls == [[1], [3]]
    handle.gate.set()
    answers = await asyncio.gather(*asking)
    assert [int(answer[0].rows[0, 0]) for answer in answers] == [1, 2, 3, 4, 5, 6]
    assert sorted(handle.calls) == [[1], [2, 6], [3], [4, 5]]


async def test_a_lone_caller_who_leaves_cancels_the_call(retried):
    """The tower need not compute for nobody."""
    handle = Handle(rows)
    handle.gate.clear()
    caller = asyncio.create_task(TowerClient("text", handle, retried.append).embed(chunk(1), SMALL))
    for _ in range(5):
        await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    for _ in range(5):
        await asyncio.sleep(0)
    assert handle.responses[0].cancelled


async def test_a_fingerprint_is_fresh_for_a_while_after_an_answer(retried, monkeypatch):
    """Each answer tells which tower it is; long after the last one nobody knows."""
    now_s = [100.0]
    monkeypatch.setattr(tower_client, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    client = TowerClient("text", Handle(rows, "v2"), retried.append)
    assert client.fresh_fingerprint is None
    _, fingerprint = await client.embed(chunk(1), SMALL)
    assert fingerprint == client.fresh_fingerprint == "v1"
    now_s[0] += tower_client.FRESH_S
    assert client.fresh_fingerprint is None
    assert await client.fingerprint() == "v1"  # the last known, for the answer's header
    await client.ready()
    assert client.fresh_fingerprint == "v2"
