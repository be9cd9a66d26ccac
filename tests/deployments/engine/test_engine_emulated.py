"""A tower's engine on an emulated GPU: its start, two batches in flight, too little memory."""

import asyncio
import itertools
import threading

import numpy as np
import pytest
import torch

from deployments.config import AppConfig
from deployments.engine.engine import TowerEngine
from deployments.engine.inputs import ImageInputs, TextInputs
from deployments.engine.start import start
from deployments.messages import ImageChunk, Terms, TextChunk
from deployments.model.pictures.seeing import AS_SERVED
from deployments.model.towers.linear import Linear
from deployments.model.weights.fingerprint import tower_digest
from deployments.model.weights.source import DEMO, WEIGHTS
from tests.emulated_gpu import kernels

TERMS = Terms("interactive", 60)
LEAST = 0.9995
MAX_TOKENS = 512
FEW_TOKENS = 64  # of a tower that starts up to four times
WAIT_S = 60


@pytest.fixture(autouse=True)
def small(gpu, monkeypatch):
    """A warm-up of few sizes and a short long text: seconds on a CPU."""
    monkeypatch.setattr("deployments.model.runtime.warmup._sizes", lambda largest: [largest])
    monkeypatch.setattr("deployments.engine.inputs.LONG_TOKENS", {"cuda": 300})


def config_of(max_tokens=MAX_TOKENS, **model):
    return AppConfig.model_validate(
        {
            "model": {"device": "cuda", **model},
            "text": {"max_batch_tokens": max_tokens, "max_batch_sequences": 16},
            "vision": {"max_batch_images": 2},
            "router": {"max_tokens_per_chunk": min(256, max_tokens)},
        }
    )


def engine_of(tower="text", **model):
    config = config_of(**model)
    inputs = TextInputs(config) if tower == "text" else ImageInputs(config, 10**7)
    return TowerEngine(config, inputs, None, f"{tower}:7")


def lowest_cosine(rows, expected):
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(expected, axis=1)
    return ((rows * expected).sum(axis=1) / norms).min()


def texts(number, length):
    random = np.random.default_rng(number)
    return [random.integers(4, 14000, length).astype(np.int32) for _ in range(number)]


async def test_a_text_tower_starts_checks_itself_and_answers(gpu, demo):
    """Its rows are compared with float32 and with the shipped ones before it serves."""
    engine = engine_of()
    assert engine.model.choices["text_attention"] == "varlen"
    assert LEAST < engine.self_check.cosine < 0.99999
    batch = texts(3, 40)
    answer = await engine.embed(TextChunk.of(batch, TERMS))
    assert answer.failures == {}
    assert lowest_cosine(answer.rows, demo.embed_tokens(batch)) >= LEAST
    engine.check_health()


async def test_a_vision_tower_starts_and_answers_for_jpegs_and_others(gpu, golden):
    """Decoded on the GPU or not, together in a batch; a broken one fails alone."""
    engine = engine_of("vision")
    assert engine.model.choices["image_decode"] == "gpu"
    first, second = golden.image_bytes()[:2]
    answer = await engine.embed(ImageChunk((first, b"no", second), TERMS))
    assert list(answer.failures) == [1]
    assert lowest_cosine(answer.rows[[0, 2]], golden.arrays["image_raw"][:2]) >= 0.999


def wrong_code(function, **_):
    return lambda *args: -function(*args)


def wrong_kernel(q, *rest, **options):
    """Be right in the trial, which has two heads, and wrong in the tower, which has three."""
    out, *others = kernels.flash(q, *rest, **options)
    return (out.flip(0) if q.shape[1] == 3 else out), *others


def wrong_in_half(layer, x):
    out = torch.nn.functional.linear(x, layer.weight, layer.bias)
    return out if x.dtype == torch.float32 else torch.full_like(out, float("nan"))


FAULTS = {
    "nothing": ({}, ("bfloat16", "on", "varlen")),
    "the compiler": ({"compile": wrong_code}, ("bfloat16", "off", "varlen")),
    "the kernel": ({"kernel": wrong_kernel}, ("bfloat16", "off", "sdpa")),
    "half precision": ({"linear": wrong_in_half}, ("float32", "off", "sdpa")),
}


@pytest.mark.parametrize(("faults", "served"), FAULTS.values(), ids=FAULTS)
def test_a_part_that_computes_something_else_is_done_without(gpu, monkeypatch, faults, served):
    """The tower is run in plainer ways, as far as is needed."""
    if "compile" in faults:
        monkeypatch.setattr(torch, "compile", faults["compile"])
    if "kernel" in faults:
        operator = torch.ops.aten._flash_attention_forward.default
        pair = kernels.flash_shape, faults["kernel"]
        monkeypatch.setitem(kernels.EMULATED, operator, pair)
    if "linear" in faults:
        monkeypatch.setattr(Linear, "forward", faults["linear"])
    config = config_of(FEW_TOKENS)
    model, check = start(config, TextInputs(config))
    choices = model.choices
    assert (choices["dtype"], choices["compile"], choices["text_attention"]) == served
    assert check.cosine >= LEAST


def test_a_tower_that_is_wrong_in_every_way_does_not_start(gpu, monkeypatch):
    """Float32 is the last way."""
    monkeypatch.setattr(Linear, "forward", lambda layer, x: -Linear.gelu(layer, x))
    monkeypatch.setattr(Linear, "gelu", lambda layer, x: x @ layer.weight.T)
    config = config_of(FEW_TOKENS)
    with pytest.raises(RuntimeError, match="self-check"):
        start(config, TextInputs(config))


async def test_two_batches_are_in_flight_and_no_third_is_prepared(gpu, demo, monkeypatch):
    """While the device works on one, the next is queued on it, and what comes later waits."""
    monkeypatch.setattr("deployments.engine.engine.LEAD_LAUNCHES", 1e9)
    monkeypatch.setattr("deployments.engine.engine.MOST_LEAD_S", 3600)
    engine = engine_of(compile="off")
    launched, both = [], threading.Event()
    launch = engine.model.launch_tokens

    def noted(batch):
        pending = launch(batch)
        launched.append(len(batch))
        if len(launched) == 2:
            both.set()
        return pending

    chunks = texts(4 * 8, 100)
    await engine.run(chunks[:10], [100] * 10)  # two batches: the pace is known
    monkeypatch.setattr(engine.model, "launch_tokens", noted)
    gpu.running.clear()
    running = asyncio.create_task(engine.run(chunks, [100] * 32))
    assert await asyncio.to_thread(both.wait, WAIT_S)
    for _ in range(50):
        await asyncio.sleep(0)
    assert (launched, running.done()) == ([5, 5], False)
    gpu.running.set()
    call = await running
    assert lowest_cosine(np.stack(call.results), demo.embed_tokens(chunks)) >= LEAST
    assert launched == [5, 5, 5, 5, 5, 5, 2]


def test_a_batch_that_finds_no_memory_at_any_operator_is_run_in_halves(gpu, demo):
    """Every text has its row, the budget is half of what failed, and nothing stays behind."""
    engine = engine_of(compile="off")
    batch = texts(4, 50)
    costs, expected = [50] * 4, demo.embed_tokens(batch)
    launch, used = engine.model.launch_tokens, []

    def noted(items):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        used.append((len(items), gpu.allocator.used_bytes))
        return launch(items)

    engine.model.launch_tokens = noted

    async def run():
        return (await engine.run(batch, costs)).results

    before = gpu.operators
    with asyncio.Runner() as runner:
        runner.run(run())
        operators = gpu.operators - before
        assert operators > 50
        for number in range(1, operators + 1, operators // 12):
            engine._batcher = engine._make_batcher(for_bulk=False)
            used.clear()
            gpu.fails_at = gpu.operators + number
            rows = np.stack(runner.run(run()))
            assert lowest_cosine(rows, expected) >= LEAST
            assert [items for items, _ in used] == [4, 2, 2]
            assert len({memory for _, memory in used}) == 1
            assert engine._batcher.queue.max_cost == sum(costs) // 2
            assert engine._batcher.memory_halvings == 1
            engine.check_health()


@pytest.mark.parametrize(
    ("tower", "ms", "budget"), [("text", 199, 256), ("vision", 190, 1), ("text", 99, 512)]
)
def test_a_slow_card_takes_smaller_batches_so_that_they_take_a_tenth_of_a_second(
    gpu, tower, ms, budget
):
    """As measured at the warm-up, in five calls; a bulk job does not."""
    gpu.elapsed_ms = itertools.repeat(5 * ms)
    engine = engine_of(tower, compile="off")
    assert engine._batcher.queue.max_cost == budget
    full = {"text": MAX_TOKENS, "vision": 2}[tower]
    assert engine._make_batcher(for_bulk=True).queue.max_cost == full


@pytest.mark.parametrize("times_ms", [(1.00, 1.03), (1.03, 1.00)])
def test_replicas_whose_kernels_took_other_times_have_one_fingerprint(gpu, times_ms):
    """Vectors of two replicas may be mixed, whatever one of them measured at its start."""
    gpu.elapsed_ms = itertools.cycle(times_ms)
    engine = engine_of("vision")
    assert engine.model.choices["vision_attention"] == "cudnn"
    shown = {"implementation": "native", "dtype": "bfloat16", "image_decode": "gpu"}
    shown["seeing"] = repr(AS_SERVED)
    assert engine.fingerprint == tower_digest(DEMO / WEIGHTS, shown)
