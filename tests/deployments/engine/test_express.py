"""Small calls beside a batch that runs: who goes there, and that both give the same rows."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from deployments.engine.batcher import Batcher
from deployments.engine.express import ExpressBatcher
from deployments.model import ClipModel


class Gated:
    """Negates numbers, one batch for each release."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Semaphore(0)

    async def run(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        await self.gate.acquire()
        return [-item for item in items]


class Scene:
    """Both batchers on gated devices; budgets 100 and 10."""

    def __init__(self, has_express: bool = True) -> None:
        self.regular, self.express = Gated(), Gated()
        self.batcher: Batcher[int, int] = (
            ExpressBatcher(self.regular.run, self.express.run, 100, 10, 100)
            if has_express
            else Batcher(self.regular.run, 100, 100)
        )

    async def submit(self, item, cost, lane="interactive"):
        task = asyncio.create_task(self.batcher.submit([item], [cost], lane))
        await asyncio.sleep(0.01)
        return task


async def test_a_query_is_answered_while_a_large_batch_runs():
    """The batch goes on; the query has its answer before."""
    scene = Scene()
    documents = await scene.submit(1, 80)
    query = await scene.submit(2, 5)
    assert (scene.regular.batches, scene.express.batches) == ([[1]], [[2]])
    scene.express.gate.release()
    assert (await query).results == [-2]
    assert not documents.done()
    scene.regular.gate.release()
    assert (await documents).results == [-1]


async def test_a_device_that_runs_one_batch_at_a_time_keeps_a_query_waiting():
    """The control: without the second batcher the query is behind the batch."""
    scene = Scene(has_express=False)
    documents = await scene.submit(1, 80)
    query = await scene.submit(2, 5)
    assert scene.regular.batches == [[1]]
    scene.regular.gate.release()
    assert (await documents).results == [-1]
    assert not query.done()
    scene.regular.gate.release()
    assert (await query).results == [-2]


@pytest.mark.parametrize(
    ("running", "cost", "lane"),
    [(80, 11, "interactive"), (80, 5, "bulk"), (10, 5, "interactive")],
    ids=["a larger call", "bulk work", "a call while a small batch runs"],
)
async def test_all_other_calls_wait_for_the_batch(running, cost, lane):
    """Only what is small, urgent and would wait for long goes beside."""
    scene = Scene()
    await scene.submit(1, running)
    await scene.submit(2, cost, lane)
    assert scene.express.batches == []


async def test_no_more_than_one_small_budget_runs_beside_a_batch():
    """A flood of queries does not take the device from the documents."""
    scene = Scene()
    await scene.submit(0, 80)
    for item in range(1, 5):
        await scene.submit(item, 4)
    assert scene.express.batches == [[1]]
    scene.express.gate.release()
    await asyncio.sleep(0.01)
    assert scene.express.batches == [[1], [2]]
    scene.regular.gate.release()
    await asyncio.sleep(0.01)
    assert scene.regular.batches == [[0], [3, 4]]


async def test_an_idle_device_takes_a_query_at_once():
    """Nothing is beside nothing."""
    scene = Scene()
    await scene.submit(1, 5)
    assert (scene.regular.batches, scene.express.batches) == ([[1]], [])


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_two_threads_in_one_tower_get_the_rows_of_one(tower):
    """Nothing in the model is shared between two batches that run at once."""
    model = ClipModel.load("demo", towers=(tower,))
    random = np.random.default_rng(7)
    if tower == "text":
        batches = [
            [random.integers(4, 14_000, size).astype(np.int32) for size in sizes]
            for sizes in ((12,), (300, 200), (7, 9), (512,)) * 8
        ]
        embed = model.embed_tokens
    else:
        size = model.architecture.vision.image_size
        batches = [
            random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
            for count in (1, 8, 2, 4) * 4
        ]
        embed = model.embed_pixels
    alone = [embed(batch) for batch in batches]
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(embed, batches))
    for one, two in zip(alone, together, strict=True):
        np.testing.assert_allclose(two, one, rtol=0, atol=1e-6)
