"""One tower's engine: chunks in, rows out; what it counts, and when it is not healthy."""

import asyncio
import gc
import threading
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from deployments.config import AppConfig
from deployments.engine.engine import TowerEngine, answer_each, finite
from deployments.engine.express import ExpressBatcher
from deployments.engine.inputs import ImageInputs, TextInputs
from deployments.errors import DeadlineError, ServiceError, TowerUnavailableError
from deployments.messages import ImageChunk, Terms, TextChunk
from deployments.model.errors import ImageError

TERMS = Terms("interactive", 60)


class Metrics:
    """Stands for TowerMetrics: keeps what it is told."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int, int]] = []
        self.gauges: dict[str, float] = {}

    def after_batch(self, items: int, cost: int, budget: int, seconds: float) -> None:
        assert seconds > 0
        self.batches.append((items, cost, budget))

    def sample(self, **gauges: float) -> None:
        self.gauges = gauges


def engine_of(tower: str = "text", metrics=None, for_bulk: bool = False, **model) -> TowerEngine:
    config = AppConfig.model_validate({"model": model})
    inputs = TextInputs(config) if tower == "text" else ImageInputs(config, 10**7)
    return TowerEngine(config, inputs, metrics, f"{tower}:7", for_bulk)


def texts_of(engine: TowerEngine, *texts: str) -> list[np.ndarray]:
    return engine.model.tokenizer.encode(texts)


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_chunk_of_texts_has_the_rows_of_the_model_alone(demo):
    """In the order of the chunk, with the replica's name and the time in the queue and on it."""
    metrics = Metrics()
    engine = engine_of(metrics=metrics)
    texts = texts_of(engine, "red apple", "", "a dog " * 40)
    chunk = TextChunk.of(texts, TERMS)
    rows, alone = await engine.answer([chunk, TextChunk.of(texts[:1], TERMS)])
    np.testing.assert_allclose(rows.rows, demo.embed_tokens(texts), rtol=0, atol=1e-5)
    np.testing.assert_allclose(alone.rows, rows.rows[:1], rtol=0, atol=1e-5)
    assert np.abs(rows.rows[0] - rows.rows[1]).max() > 1e-3
    assert (rows.failures, rows.replica) == ({}, "text:7")
    assert rows.device_ms > 0
    assert rows.queue_ms >= 0
    assert rows.fingerprint == engine.fingerprint == engine.model.fingerprint
    assert sum(items for items, _, _ in metrics.batches) == 4
    assert {budget for _, _, budget in metrics.batches} <= {TextInputs.cpu_cost, 128}


async def test_a_chunk_larger_than_a_batch_runs_in_several(demo):
    """Its rows are the same; a batch is no larger for it."""
    metrics = Metrics()
    config = AppConfig.model_validate({"text": {"max_batch_tokens": 32}})
    engine = TowerEngine(config, TextInputs(config), metrics, "text:7")
    texts = texts_of(engine, *(f"number {number} of the texts" for number in range(20)))
    assert sum(map(len, texts)) > 3 * 32
    answer = await engine.embed(TextChunk.of(texts, TERMS))
    np.testing.assert_allclose(answer.rows, demo.embed_tokens(texts), rtol=0, atol=1e-5)
    assert len(metrics.batches) > 3
    assert max(cost for _, cost, _ in metrics.batches) <= 32


async def test_a_broken_image_fails_alone_between_others(golden):
    """Its row is zero; those around it are the published ones, in their places."""
    engine = engine_of("vision")
    first, second = golden.image_bytes()[:2]
    answer = await engine.embed(ImageChunk((b"no", first, b"broken", second), TERMS))
    assert sorted(answer.failures) == [0, 2]
    assert all(isinstance(error, ImageError) for error in answer.failures.values())
    expected = golden.arrays["image_raw"][:2]
    np.testing.assert_allclose(answer.rows[[1, 3]], expected, rtol=0, atol=1e-5)
    assert not answer.rows[[0, 2]].any()


async def test_work_is_outstanding_until_it_is_answered_or_given_up():
    """Tokens of chunks; a chunk out of time fails, and its texts are not run."""
    metrics = Metrics()
    engine = engine_of(metrics=metrics)
    hold = threading.Event()
    engine._device.submit(hold.wait, 30)
    (text,) = texts_of(engine, "red apple")
    waits = asyncio.create_task(engine.embed(TextChunk.of([text], TERMS)))
    await settle()
    late = TextChunk.of([text, text], Terms("interactive", 0.5))
    gives_up = asyncio.create_task(engine.answer([late]))
    await settle()
    assert engine.outstanding == 3 * len(text)
    (part,) = await gives_up
    assert isinstance(part, DeadlineError)
    assert engine.outstanding == len(text)
    hold.set()
    assert (await waits).failures == {}
    assert engine.outstanding == 0
    assert metrics.batches == [(1, len(text), TextInputs.cpu_cost)]


async def test_chunks_of_one_call_have_their_own_ends():
    """Two are out of time, the third is answered; a call that is given up runs nothing more."""
    metrics = Metrics()
    engine = engine_of(metrics=metrics)
    hold = threading.Event()
    engine._device.submit(hold.wait, 30)
    (text,) = texts_of(engine, "red apple")
    late, patient = (TextChunk.of([text], Terms("interactive", s)) for s in (0.2, 60))
    first = asyncio.create_task(engine.answer([TextChunk.of([text], TERMS)]))
    await settle()
    three = asyncio.create_task(engine.answer([late, late, patient]))
    given_up = asyncio.create_task(engine.answer([patient, patient]))
    await settle()
    assert engine.outstanding == 6 * len(text)
    given_up.cancel()
    await asyncio.sleep(0.3)
    hold.set()
    *out_of_time, answered = await three
    assert {type(error) for error in out_of_time} == {DeadlineError}
    assert [str(error) for error in out_of_time] == ["not done within 0.2 s"] * 2
    assert answered.rows.any()
    assert (await first)[0].rows.any()
    assert engine.outstanding == 0
    assert sum(items for items, _, _ in metrics.batches) == 2


async def test_nothing_of_an_answered_call_stays_in_memory():
    """Without waiting for Python to look for cycles."""
    engine = engine_of()
    chunk = TextChunk.of(texts_of(engine, "red apple"), TERMS)
    kept = weakref.ref(chunk.token_ids)
    gc.disable()
    try:
        await engine.answer([chunk])
        engine._device.submit(int).result()  # its thread has let go of the batch
        del chunk
        assert kept() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
async def test_a_row_that_is_not_finite_fails_alone_and_is_counted(demo, monkeypatch, poison):
    """Its neighbours are answered from the same batch, which is not run again."""
    metrics = Metrics()
    engine = engine_of(metrics=metrics)
    embed, runs = demo.embed_tokens, []

    def poisoned(texts):
        runs.append(len(texts))
        rows = embed(texts)
        rows[1, 2] = poison
        return SimpleNamespace(rows=lambda: rows)

    monkeypatch.setattr(engine.model, "launch_tokens", poisoned)
    answer = await engine.embed(TextChunk.of(texts_of(engine, "one", "two", "three"), TERMS))
    assert list(answer.failures) == [1]
    assert type(answer.failures[1]) is ServiceError
    assert "no finite vector" in str(answer.failures[1])
    assert np.isfinite(answer.rows).all()
    assert answer.rows[[0, 2]].any(axis=1).all()
    assert runs == [3]
    engine.check_health()
    assert metrics.gauges["nonfinite_rows"] == 1


def test_finite_rows_are_not_touched():
    """The usual case costs one check."""
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_array_equal(finite(rows), rows)


async def test_the_tower_answers_each_chunk_for_itself():
    """An expected error and an unexpected one stay with their chunks."""

    async def embed(number: int) -> int:
        await asyncio.sleep(0)
        if number == 1:
            raise DeadlineError("late")
        return 10 // number

    two, late, broken = await answer_each(embed, [2, 1, 0])
    assert two == 5
    assert isinstance(late, DeadlineError)
    assert type(broken) is ServiceError
    assert "ZeroDivisionError" in str(broken)


async def test_a_tower_on_a_cpu_answers_a_query_while_a_batch_is_on_its_thread(demo, monkeypatch):
    """The real device, its thread held up; the row is that of the model alone."""
    engine = engine_of()
    query, long = texts_of(engine, "red apple", "a dog " * 100)
    launch, hold, begun = engine.model.launch_tokens, threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def held(texts):
        if len(texts[0]) == len(long):
            loop.call_soon_threadsafe(begun.set)
            hold.wait(30)
        return launch(texts)

    monkeypatch.setattr(engine.model, "launch_tokens", held)
    first = asyncio.create_task(engine.run([long], [len(long)]))
    await begun.wait()
    (row,) = (await asyncio.wait_for(engine.run([query], [len(query)]), 30)).results
    assert not first.done()
    hold.set()
    await first
    np.testing.assert_array_equal(row, demo.embed_tokens([query])[0])


def test_only_a_serving_cpu_runs_small_calls_beside_a_batch(monkeypatch):
    """A GPU's engine has neither the second batcher nor its thread; nor has a bulk job's."""
    assert isinstance(engine_of()._batcher, ExpressBatcher)
    bulk = engine_of(for_bulk=True)._batcher
    assert not isinstance(bulk, ExpressBatcher)
    assert bulk.queue.max_cost == AppConfig().text.max_batch_tokens
    engine = engine_of()
    engine._device.is_cpu = False
    on_gpu = engine._make_batcher(for_bulk=False)
    assert not isinstance(on_gpu, ExpressBatcher)
    assert on_gpu.queue.max_cost == AppConfig().text.max_batch_tokens


def test_third_party_towers_run_one_batch_at_a_time():
    """Whether they bear two at once is not known. Of images: the self-check's texts take 15 s."""
    batcher = engine_of("vision", implementation="reference")._batcher
    assert not isinstance(batcher, ExpressBatcher)
    assert batcher.queue.max_cost == ImageInputs.cpu_cost


def test_a_tower_that_drifts_fails_its_health_check_and_the_metrics_tell():
    """The weights change under a running replica; the next self-check makes it unhealthy."""
    metrics = Metrics()
    engine = engine_of("vision", metrics, self_check_period_s=1e-9)

    def check():
        """Begin a self-check, wait for it on the device's thread, and take its result."""
        engine.check_health()
        engine._device.submit(int).result()
        engine.check_health()

    check()
    assert metrics.gauges["cosine"] > 0.999
    weights = next(engine.model._vision._encoder.parameters())
    engine._device.submit(weights.data.mul_, -1).result()
    engine._device.submit(int).result()
    with pytest.raises(RuntimeError, match="self-check"):
        check()
    assert metrics.gauges["cosine"] < 0.999


async def test_a_lost_device_fails_what_it_was_to_run_and_the_replica(monkeypatch):
    """The callers may try another replica; this one is to be replaced."""
    import torch

    engine = engine_of()

    def lost(_texts):
        raise torch.AcceleratorError("an illegal memory access")

    monkeypatch.setattr(engine.model, "launch_tokens", lost)
    answer = await engine.embed(TextChunk.of(texts_of(engine, "one"), TERMS))
    assert isinstance(answer.failures[0], TowerUnavailableError)
    with pytest.raises(RuntimeError, match="device is lost"):
        engine.check_health()
