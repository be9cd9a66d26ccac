"""How many lines of a batch are under way beside other requests."""

import asyncio
import time
from types import SimpleNamespace

import pytest

from deployments.config import AppConfig
from serve_app.batches import service
from serve_app.batches.job import Answer
from serve_app.batches.objects import Batch
from tests.serve_app.batches.told import line


@pytest.mark.parametrize(("since_s", "most"), [(0.0, 1), (1e6, 8)])
async def test_beside_interactive_requests_one_line_is_under_way(
    folder, begun, monkeypatch, since_s, most
):
    """Else as many as are configured."""
    under_way, highest = 0, 0

    async def ask(_app, _key, _batch, body: bytes) -> Answer:
        nonlocal under_way, highest
        under_way += 1
        highest = max(highest, under_way)
        for _ in range(20):
            await asyncio.sleep(0)
        under_way -= 1
        return Answer(200, "q", body)

    monkeypatch.setattr(service, "ask", ask)
    batch = begun("".join(f"{line(number)}\n" for number in range(200)))
    config = AppConfig.model_validate({"batches": {"folder": str(folder.root)}})
    batches = service.Batches(config, lambda: time.perf_counter() - since_s)
    keys = SimpleNamespace(of=lambda _: None)
    app = SimpleNamespace(state=SimpleNamespace(keys=keys))
    async with batches.working(app), asyncio.timeout(60):  # type: ignore[arg-type]
        while not folder.load(Batch, batch.id).is_over:  # noqa: ASYNC110 - another task's file
            await asyncio.sleep(0.01)
    assert highest == most if most == 1 else 1 < highest <= most
