"""The towers on an emulated GPU: load, warm-up, every graph, batches in flight, small cards."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

from deployments.model import ClipModel
from deployments.model.errors import OptionError
from deployments.model.pictures.seeing import AS_SERVED
from deployments.model.runtime import warmup
from deployments.model.runtime.graphs import GRAPH_IMAGES, text_shapes
from deployments.model.towers.packing import GraphShape
from tests.emulated_gpu.gpu import emulated_gpu
from tests.emulated_gpu.tensors import CudaTensor

LEAST = 0.9995
MOST_TOKENS = 1536


@pytest.fixture(scope="module")
def warm():
    """The shipped model on an H100 after its warm-up."""
    with emulated_gpu() as gpu, pytest.MonkeyPatch.context() as patch:
        patch.setattr(warmup, "_sizes", lambda largest: [largest])  # seconds on a CPU
        model = ClipModel.load(device="cuda", dtype="auto")
        report = model.warm_up(MOST_TOKENS, 16, 8)
        yield SimpleNamespace(gpu=gpu, model=model, report=report)


def lowest_cosine(rows, expected):
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(expected, axis=1)
    return ((rows * expected).sum(axis=1) / norms).min()


def texts(*lengths):
    random = np.random.default_rng(sum(lengths))
    return [random.integers(4, 14000, length).astype(np.int32) for length in lengths]


def token_ids(golden):
    return [np.array(text["ids"], dtype=np.int32) for text in golden.texts]


def test_a_gpu_is_used_as_it_should_be(warm):
    """Half precision, FlashAttention, cuDNN, the compiler, its JPEG decoder; memory is measured."""
    assert warm.model.choices == {
        "implementation": "native",
        "device": "cuda",
        "dtype": "bfloat16",
        "compile": "on",
        "image_decode": "gpu",
        "seeing": repr(AS_SERVED),
        "text_attention": "varlen",
        "vision_attention": "cudnn",
    }
    assert tuple(warm.model._text._graphs) == text_shapes(MOST_TOKENS)
    assert tuple(warm.model._vision._graphs) == GRAPH_IMAGES
    assert 0 < warm.report.text_peak_bytes < warm.gpu.allocator.total_bytes
    assert warm.report.vision_peak_bytes > 0


def filled_by(shape: GraphShape) -> list[np.ndarray]:
    """Return texts that fit this shape, and no smaller one."""
    longest = min(shape.longest, shape.tokens - 2)
    if (shape.longest, shape.sequences) == (128, shape.tokens // 4) and shape.tokens > 128:
        other = 128 if shape.tokens > 1024 else 8  # texts that the other kind of shape takes
        longest = min(longest, shape.tokens // (other + 1))
    return texts(*[longest] * (shape.tokens // longest))


@pytest.mark.parametrize("shape", text_shapes(MOST_TOKENS), ids=str)
def test_every_text_graph_gives_the_rows_of_a_cpu(warm, demo, shape):
    """The rows of the texts, not those of the filling, from one replay."""
    graph, batch, before = warm.model._text._graphs[shape], filled_by(shape), warm.gpu.replays
    used = []
    replay = graph.replay
    graph.replay = lambda: used.append(shape) or replay()
    try:
        rows = warm.model.embed_tokens(batch)
    finally:
        del graph.replay
    assert (used, warm.gpu.replays) == ([shape], before + 1)
    assert lowest_cosine(rows, demo.embed_tokens(batch)) >= LEAST


@pytest.mark.parametrize("count", range(1, 9))
def test_every_image_graph_gives_the_published_rows(warm, golden, count):
    """Numbers of images between two graphs are filled up."""
    before = warm.gpu.replays
    rows = warm.model.embed_pixels(golden.arrays["crops"][:count])
    assert warm.gpu.replays == before + 1
    assert lowest_cosine(rows, golden.arrays["image_raw"][:count]) >= LEAST


@pytest.mark.parametrize("lengths", [(9,), (700, 700, 700, 3)], ids=["a graph", "no graph"])
def test_the_host_waits_for_nothing_while_it_launches_a_batch(warm, demo, lengths):
    """It waits once, for the rows, when they are collected."""
    batch, before = texts(*lengths), len(warm.gpu.syncs)
    pending = warm.model.launch_tokens(batch)
    assert warm.gpu.syncs[before:] == []
    assert lowest_cosine(pending.rows(), demo.embed_tokens(batch)) >= LEAST
    assert warm.gpu.syncs[before:] == ["event.synchronize"]


def test_launched_batches_do_not_disturb_each_other(warm, golden):
    """Graphs share their memory; rows are collected after later batches were queued."""
    ids = token_ids(golden)
    pending = [warm.model.launch_tokens([one]) for one in ids]
    rows = np.concatenate([one.rows() for one in pending])
    assert lowest_cosine(rows, golden.arrays["text_raw"]) >= LEAST
    crops = golden.arrays["crops"]
    images = [warm.model.launch_pixels(crops[i : i + 1]) for i in range(len(crops))]
    rows = np.concatenate([one.rows() for one in images])
    assert lowest_cosine(rows, golden.arrays["image_raw"]) >= LEAST


def rows_of_images_that_are_let_go(warm, golden):
    """Launch images that the GPU has decoded, forget them, and decode others before they ran."""
    crops = torch.from_numpy(golden.arrays["crops"][:6].copy())
    decoding = warm.model._decoder._stream
    with torch.cuda.stream(decoding):
        first = [warm.gpu.on_device(crop) for crop in crops[:3]]
    pending = warm.model.launch_pixels(first)
    del first
    with torch.cuda.stream(decoding):
        _others = [warm.gpu.on_device(crop) for crop in crops[3:]]
    return pending.rows()


def test_images_keep_their_memory_until_the_batch_has_read_it(warm, golden, monkeypatch):
    """Memory of the decoder's stream is not handed out again while another stream reads it."""
    expected = golden.arrays["image_raw"][:3]
    assert lowest_cosine(rows_of_images_that_are_let_go(warm, golden), expected) >= LEAST
    monkeypatch.setattr(CudaTensor, "record_stream", lambda *_: None)
    assert lowest_cosine(rows_of_images_that_are_let_go(warm, golden), expected) < LEAST


def test_an_older_gpu_runs_in_float16(golden, demo):
    """A T4 has no bfloat16 and no FlashAttention; its rows are as close, and it has graphs."""
    with emulated_gpu("T4", (7, 5)) as gpu:
        model = ClipModel.load(device="cuda", dtype="auto")
        assert model.choices["dtype"] == "float16"
        assert model.choices["text_attention"] == "efficient"
        model._text.capture(64)
        batch = texts(5, 20)
        assert lowest_cosine(model.embed_tokens(batch), demo.embed_tokens(batch)) >= LEAST
        assert gpu.replays == 1
        rows = model.embed_tokens(token_ids(golden))
        assert lowest_cosine(rows, golden.arrays["text_raw"]) >= LEAST
        rows = model.embed_pixels(golden.arrays["crops"][:3])
        assert lowest_cosine(rows, golden.arrays["image_raw"][:3]) >= LEAST


@pytest.mark.parametrize("attention", ["sdpa", "efficient", "auto"])
def test_float32_gives_the_golden_vectors(gpu, golden, attention):
    """Also the plain tower, `sdpa`, that the self-check compares with."""
    model = ClipModel.load(device="cuda", dtype="float32", compile="off", attention=attention)
    rows = model.embed_tokens(token_ids(golden))
    np.testing.assert_allclose(rows, golden.arrays["text_raw"], atol=1e-5)
    rows = model.embed_pixels(golden.arrays["crops"])
    np.testing.assert_allclose(rows, golden.arrays["image_raw"], atol=1e-5)


def refuse_to_compile(*_, **__):
    def compiled(*_):
        raise BackendCompilerFailed(compiled, RuntimeError("no C compiler"), None)

    return compiled


def test_a_compiler_that_fails_is_done_without(gpu, golden, monkeypatch, caplog):
    """With a warning; `compile=on` means that it is needed."""
    monkeypatch.setattr(torch, "compile", refuse_to_compile)
    model = ClipModel.load(device="cuda", dtype="auto", towers=("text",))
    with caplog.at_level(logging.WARNING):
        rows = model.embed_tokens(token_ids(golden))
    assert "torch.compile failed" in caplog.text
    assert lowest_cosine(rows, golden.arrays["text_raw"]) >= LEAST
    needed = ClipModel.load(device="cuda", towers=("text",), compile="on")
    with pytest.raises(BackendCompilerFailed):
        needed.embed_tokens(token_ids(golden))


def test_a_budget_beyond_the_memory_is_refused_with_the_largest_that_fits(monkeypatch):
    """And the model still works with that one."""
    monkeypatch.setattr(warmup, "_sizes", lambda largest: [largest])
    with emulated_gpu(total_bytes=32 * 2**20):
        model = ClipModel.load(device="cuda", dtype="auto", towers=("text",), compile="off")
        with pytest.raises(OptionError, match=r"max_batch_tokens=3,072 .* that fits is [1-9]") as e:
            model.warm_up(max_batch_tokens=3072)
        largest = int(str(e.value).rsplit(" ", 1)[1].replace(",", ""))
        assert 1024 <= largest < 3072
        model.warm_up(max_batch_tokens=largest)
