"""How many lines of a batch are under way beside other requests."""

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deployments.config import AppConfig
from deployments.routing.interactive import Interactive
from serve_app.batches import service
from serve_app.batches.job import Answer
from serve_app.batches.objects import Batch
from tests.serve_app.batches.told import text


def working(folder, ask, monkeypatch, interactive):
    """Have the batches of a folder worked off, lines answered by `ask`."""
    monkeypatch.setattr(service, "ask", ask)
    config = AppConfig.model_validate({"batches": {"folder": str(folder.root)}})
    keys = SimpleNamespace(of=lambda _: None)
    app: Any = SimpleNamespace(state=SimpleNamespace(keys=keys))
    return service.Batches(config, lambda: interactive).working(app)


@pytest.mark.parametrize("is_quiet", [False, True])
async def test_beside_interactive_requests_one_line_is_under_way(
    folder, begun, monkeypatch, is_quiet
):
    """Else as many as are configured."""
    interactive = Interactive(clock=lambda: 0.0)
    if not is_quiet:
        with interactive.request("interactive"):
            pass
    under_way, highest = 0, 0

    async def ask(_app, _key, _batch, body: bytes) -> Answer:
        nonlocal under_way, highest
        under_way += 1
        highest = max(highest, under_way)
        for _ in range(20):
            await asyncio.sleep(0)
        under_way -= 1
        return Answer(200, "q", body)

    batch = begun(text(range(200)))
    async with working(folder, ask, monkeypatch, interactive), asyncio.timeout(60):
        while not folder.load(Batch, batch.id).is_over:  # noqa: ASYNC110 - another task's file
            await asyncio.sleep(0.01)
    assert 1 < highest <= 8 if is_quiet else highest == 1


@pytest.mark.parametrize("lane", ["interactive", "bulk"])
async def test_a_line_is_asked_between_interactive_requests(folder, begun, monkeypatch, lane):
    """Not beside one, but for what has waited long; work of its own lane it does not wait for."""
    interactive, asked, others = Interactive(), asyncio.Event(), 0

    async def ask(_app, _key, _batch, body: bytes) -> Answer:
        nonlocal others
        others += interactive_under_way
        asked.set()
        return Answer(200, "q", body)

    monkeypatch.setattr(service, "MOST_WAIT_S", 60.0)
    begun(text(range(5)))
    with interactive.request("interactive"):
        pass
    interactive_under_way = True
    async with working(folder, ask, monkeypatch, interactive), asyncio.timeout(60):
        with interactive.request(lane):
            if lane == "bulk":
                await asked.wait()
            else:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(asked.wait(), 0.2)
        interactive_under_way = False
        await asked.wait()
    assert others == 0 or lane == "bulk"


@pytest.mark.parametrize("is_quiet", [False, True])
async def test_between_lines_beside_interactive_requests_there_is_a_rest(monkeypatch, is_quiet):
    """Twice the time of the line before; nobody rests where nobody else asks."""
    now_s = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += max(0.0, seconds)

    monkeypatch.setattr(service, "time", SimpleNamespace(monotonic=lambda: now_s))
    monkeypatch.setattr(service, "asyncio", SimpleNamespace(Lock=asyncio.Lock, sleep=sleep))
    interactive = Interactive(clock=lambda: now_s)
    if not is_quiet:
        with interactive.request("interactive"):
            pass
    turns, begun_s = service.Turns(lambda: interactive), []
    for line_s in (0.02, 0.01, 0.04):
        async with turns.turn():
            begun_s.append(now_s)
            now_s += line_s
    async with turns.turn():
        begun_s.append(now_s)
    rest = 0 if is_quiet else service.REST
    expected_s = np.cumsum([0, 0.02 + rest * 0.02, 0.01 + rest * 0.01, 0.04 + rest * 0.04])
    assert begun_s == pytest.approx(list(expected_s))


async def test_a_long_line_is_not_followed_by_a_long_rest(monkeypatch):
    """A busy service works a batch off, however long its lines take."""
    monkeypatch.setattr(service, "MOST_WAIT_S", 0.01)
    monkeypatch.setattr(service, "REST", 1e6)
    interactive = Interactive()
    turns = service.Turns(lambda: interactive)
    async with asyncio.timeout(30):
        for _ in range(3):
            with interactive.request("interactive"):
                pass
            async with turns.turn():
                await asyncio.sleep(0.01)


async def test_a_line_waits_for_a_gap_only_so_long(folder, begun, monkeypatch):
    """A service that always has interactive requests works batches off too."""
    interactive, asked = Interactive(), asyncio.Semaphore(0)

    async def ask(_app, _key, _batch, body: bytes) -> Answer:
        asked.release()
        return Answer(200, "q", body)

    monkeypatch.setattr(service, "MOST_WAIT_S", 0.01)
    begun(text(range(5)))
    with interactive.request("interactive"):
        async with working(folder, ask, monkeypatch, interactive), asyncio.timeout(60):
            for _ in range(5):
                await asked.acquire()
