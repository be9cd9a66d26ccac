"""The Router's side of a tower: a second try for a lost replica, and which one answered."""

import asyncio

import numpy as np
import pytest
from ray.exceptions import ActorUnavailableError
from ray.serve.exceptions import DeploymentUnavailableError

from deployments.config import TextTowerConfig
from deployments.errors import DeadlineError, ServiceError, TowerUnavailableError
from deployments.messages import Terms, TextChunk, TowerRows
from deployments.routing.cache import RowCache
from deployments.routing.sleep import Sleep
from deployments.routing.tower_client import TowerClient

LOST = ActorUnavailableError("the node has gone", None)
SMALL = 0.01


def chunk(number: int, lane="interactive") -> TextChunk:
    return TextChunk.of([np.array([number, 0], np.int32)], Terms(lane, 60))


def rows(number: float, error=None) -> TowerRows:
    failures = {0: error} if error else {}
    return TowerRows(np.full((1, 4), number, np.float32), failures, fingerprint="v1")


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
            outcome = tuple(outcome(number) for number in numbers)
        self.responses.append(Response(outcome, self.gate))
        return self.responses[-1]


class Metrics:
    """Remembers the retries."""

    def __init__(self) -> None:
        self.retried: list[str] = []

    def retry(self, tower: str) -> None:
        self.retried.append(tower)


def client_of(handle: Handle) -> TowerClient:
    return TowerClient(
        "text", handle, RowCache(0), Metrics(), Sleep(TextTowerConfig(), "hold", 1.0)
    )


async def ask(client, *numbers, lane="interactive"):
    """Let callers ask at once; return their answers or errors."""
    asking = [client.embed(chunk(number, lane), SMALL) for number in numbers]
    return await asyncio.gather(*asking, return_exceptions=True)


async def test_a_lost_replica_costs_every_chunk_of_its_call_one_more_try():
    """The whole call is sent again, once, and counted once."""
    handle = Handle(rows, LOST, rows)
    client = client_of(handle)
    first, second, third = await ask(client, 1, 2, 3)
    assert handle.calls == [[1], [2, 3], [2, 3]]
    assert [int(answer.rows[0, 0]) for answer in (first, second, third)] == [1, 2, 3]
    assert client.metrics.retried == ["text"]


async def test_a_second_loss_is_told_to_each_caller_of_the_call():
    """Nobody waits for a third try; the call before it stands."""
    handle = Handle(rows, LOST, LOST)
    first, *others = await ask(client_of(handle), 1, 2, 3)
    assert int(first.rows[0, 0]) == 1
    assert [type(error) for error in others] == [TowerUnavailableError] * 2
    assert len(handle.calls) == 3


async def test_a_replica_without_its_device_is_as_good_as_lost():
    """Its answer that one chunk could not be run sends the call again; a deadline does not."""
    gone = TowerUnavailableError("the device is lost")
    handle = Handle(lambda number: rows(0, gone), rows, lambda number: DeadlineError("late"))
    client = client_of(handle)
    (answer,) = await ask(client, 1)
    assert int(answer.rows[0, 0]) == 1
    (late,) = await ask(client, 2)
    assert isinstance(late, DeadlineError)
    assert handle.calls == [[1], [1], [2]]


async def test_lanes_do_not_travel_together():
    """An interactive chunk never waits for the answer to a bulk one in the same call."""
    handle = Handle(*[rows] * 4)
    client = client_of(handle)
    await asyncio.gather(ask(client, 1, 2), ask(client, 11, 12, lane="bulk"))
    assert sorted(handle.calls) == [[1], [2], [11], [12]]


async def test_queries_travel_with_small_documents_and_large_ones_with_large():
    """A query's answer never waits for that to a large chunk in the same call."""
    handle = Handle(*[rows] * 5)
    handle.gate.clear()
    client = client_of(handle)
    shares = (0.1, 1), (0.3, 2), (SMALL, 3), (0.2, 4), (0.1, 5), (0.3, 6), (0.9, 7)
    asking = [asyncio.create_task(client.embed(chunk(number), share)) for share, number in shares]
    for _ in range(5):
        await asyncio.sleep(0)
    assert handle.calls[:3] == [[1], [2], [7]]  # the rest waits, 3 ms by a clock that goes on
    handle.gate.set()
    answers = await asyncio.gather(*asking)
    assert [int(answer.rows[0, 0]) for answer in answers] == [1, 2, 3, 4, 5, 6, 7]
    assert sorted(handle.calls) == [[1], [2], [3, 5], [4, 6], [7]]


async def test_a_lone_caller_who_leaves_cancels_the_call():
    """The tower need not compute for nobody."""
    handle = Handle(rows)
    handle.gate.clear()
    caller = asyncio.create_task(client_of(handle).embed(chunk(1), SMALL))
    for _ in range(5):
        await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    for _ in range(5):
        await asyncio.sleep(0)
    assert handle.responses[0].cancelled


async def test_the_fingerprint_is_that_of_the_last_answer():
    """An answer tells it, and so does being asked; it is asked for only when none is known."""
    handle = Handle("v0", rows, "v2")
    client = client_of(handle)
    assert client.cache.fingerprint is None
    assert await client.fingerprint() == "v0"
    answer = await client.embed(chunk(1), SMALL)
    assert answer.fingerprint == client.cache.fingerprint == "v1"
    assert await client.fingerprint() == "v1"
    assert len(handle.calls) == 2
    assert await client.fingerprint(anew=True) == "v2"
    assert client.cache.fingerprint == "v2"


async def test_a_tower_that_is_asked_for_its_fingerprint_and_lost_is_unavailable():
    """The caller hears a typed error; what was heard before stands."""
    client = client_of(Handle("v1", LOST))
    await client.ready()
    with pytest.raises(TowerUnavailableError):
        await client.fingerprint(anew=True)
    assert await client.fingerprint() == "v1"


async def test_a_tower_whose_replicas_do_not_start_any_more_is_unavailable():
    """Ray Serve gives up after some failed starts; a request may work once it is deployed anew."""
    (error,) = await ask(client_of(Handle(DeploymentUnavailableError("text"))), 1)
    assert type(error) is TowerUnavailableError


async def test_a_failure_that_is_not_ours_is_not_shown_to_the_caller():
    """Its text may hold anything; the caller hears that the tower failed."""
    (error,) = await ask(client_of(Handle(KeyError("secret"))), 1)
    assert type(error) is ServiceError
    assert "secret" not in str(error)
