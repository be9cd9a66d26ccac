import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from deployments.model import ClipModel
from deployments.model.errors import OptionError, TextTooLongError
from deployments.model.runtime import memory
from deployments.model.runtime.compilation import resolve
from deployments.model.runtime.graphs import fitting, text_shapes
from deployments.model.runtime.runners import TextRunner
from deployments.model.runtime.warmup import text_extremes, unlike
from deployments.model.towers.attention import (
    LONG_CONTEXT,
    PackedKernels,
    Segments,
    packed_attention,
)
from deployments.model.towers.linear import int8_fault
from deployments.model.towers.packing import GraphShape, pack, text_batches
from deployments.model.towers.text import Layer, TextEncoder, mean_pool
from deployments.model.towers.vision import PaddedLayerNorm, VisionEncoder
from deployments.model.weights import loading
from deployments.model.weights.checkpoint import Checkpoint
from deployments.model.weights.loading import Place, fill

CPU = torch.device("cpu")
needs_int8 = pytest.mark.skipif(bool(int8_fault(CPU)), reason="a CPU without int8 products")


def texts(lengths: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(4, 14000, length).astype(np.int32) for length in lengths]


@pytest.mark.parametrize("lengths", [(5,), (40, 7, 7), (3,) * 16, (60, 60, 60), (900, 20, 4)])
def test_filling_a_batch_up_to_a_shape_changes_no_row(demo: ClipModel, lengths: tuple[int, ...]):
    """Rows of a batch that was filled up equal those of the batch itself."""
    batch = texts(lengths)
    shape = fitting(text_shapes(2048), lengths)
    assert shape is not None
    packed = pack(batch, 1, shape)
    with torch.inference_mode():
        rows = demo._text._encoder(packed).numpy()[: len(batch)]
    assert len(packed.token_ids) == shape.tokens
    assert len(packed.segments.cu_seqlens) == shape.num_bounds
    assert packed.segments.max_length == shape.longest
    assert packed.segments.cu_seqlens.diff().max() <= shape.longest
    np.testing.assert_allclose(rows, demo.embed_tokens(batch)[packed.order], atol=1e-5)


def test_every_shape_can_be_filled_from_its_emptiest_and_fullest_batch():
    """Bounds rise to the shape's tokens in steps of at most its longest text."""
    for shape in text_shapes(16384):
        for count in (1, shape.sequences):
            bounds = shape.fill(np.arange(count + 1) * 2)
            assert len(bounds) == shape.num_bounds
            assert bounds[-1] == shape.tokens
            assert 0 <= np.diff(bounds).min() <= np.diff(bounds).max() <= shape.longest


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((16,), GraphShape(16, 4, 16)),
        ((4, 4, 4, 4), GraphShape(16, 4, 16)),
        ((3, 3, 3, 3, 3), GraphShape(32, 8, 32)),
        ((200,), GraphShape(256, 8, 256)),
        ((100,) * 12, GraphShape(1536, 128, 512)),
        ((500, 500, 500), GraphShape(1536, 128, 512)),
        ((129,) * 100, GraphShape(13312, 128, 512)),
        ((32,) * 512, GraphShape(16384, 512, 128)),
        ((1025,), None),
        ((513,) * 4, None),
        ((129,) * 129, None),
        ((20,) * 513, None),
    ],
)
def test_a_batch_takes_the_smallest_shape_that_holds_it(
    lengths: tuple[int, ...], expected: GraphShape | None
):
    """Tokens, texts and the longest all have to fit; batches with long texts have no graph."""
    assert fitting(text_shapes(16384), lengths) == expected


def test_no_shape_is_larger_than_the_budget():
    """A small budget captures small graphs only; a full batch has one of its own size."""
    assert max(shape.tokens for shape in text_shapes(100)) == 96
    assert max(shape.tokens for shape in text_shapes(16384)) == 16384


def test_at_most_an_eighth_of_a_large_batch_is_filling():
    """Sizes follow each other closely."""
    sizes = sorted({shape.tokens for shape in text_shapes(16384) if shape.tokens >= 2048})
    assert all(9 * low >= 8 * high for low, high in itertools.pairwise(sizes))


def test_small_batches_replay_the_graph_of_their_shape(
    demo: ClipModel, monkeypatch: pytest.MonkeyPatch
):
    """A runner with captured shapes copies a batch into one and returns the rows of its texts."""
    tower = demo._text._encoder
    runner = TextRunner(tower, CPU)

    class Replayed:
        def __init__(self, shape: GraphShape) -> None:
            self.inputs = pack(texts([shape.longest]), 1, shape)
            self.replays = 0

        def replay(self) -> torch.Tensor:
            self.replays += 1
            return tower(self.inputs)

    with torch.inference_mode():
        runner._graphs = {shape: Replayed(shape) for shape in text_shapes(64)}
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    batch = texts((11, 3, 9))
    np.testing.assert_allclose(runner.launch(batch).rows(), demo.embed_tokens(batch), atol=1e-5)
    replays = {shape.tokens: graph.replays for shape, graph in runner._graphs.items()}
    assert replays == {16: 0, 32: 1, 48: 0, 64: 0}
    runner.launch(texts((100,)))
    assert sum(graph.replays for graph in runner._graphs.values()) == 1


@pytest.mark.parametrize("multiple", [32, 256])
def test_a_padded_swiglu_gives_the_same_rows(demo: ClipModel, golden, multiple: int):
    """Zero columns up to a multiple leave the vision tower's rows as they are."""
    checkpoint = Checkpoint.open("demo")
    with torch.device("meta"):
        tower = VisionEncoder(checkpoint.architecture.vision, mlp_multiple=multiple)
    fill(tower, checkpoint.vision_weights(), Place(CPU, torch.float32))
    assert tower.blocks[0].mlp.w3.in_features % multiple == 0
    assert tower.blocks[0].mlp.w3.in_features > checkpoint.architecture.vision.mlp_width
    pixels = golden.arrays["crops"][:4]
    with torch.inference_mode():
        rows = tower(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(rows, demo.embed_pixels(pixels), atol=1e-5)


def test_the_padded_norm_keeps_the_statistics_of_the_true_width():
    """It equals a plain norm of the true width; a norm over all of it would not."""
    padded = PaddedLayerNorm(10, 16, 1e-6)
    x = torch.zeros(3, 16)
    x[:, :10] = torch.randn(3, 10, generator=torch.Generator().manual_seed(1)) + 3
    exact = nn.functional.layer_norm(x[:, :10], (10,), eps=1e-6)
    torch.testing.assert_close(padded(x)[:, :10], exact, atol=1e-5, rtol=0)
    naive = nn.functional.layer_norm(x, (16,), eps=1e-6)[:, :10]
    assert (naive - exact).abs().max() > 0.1


def test_mean_pooling_averages_each_text_in_float32():
    """Long texts of bfloat16 tokens are averaged to float32 precision, without their neighbours."""
    lengths = (5000, 3, 1)
    x = (torch.randn(sum(lengths), 4) + 5).bfloat16()
    where = Segments(torch.tensor([0, *lengths]).cumsum(0).int(), 5000, 5000)
    exact = torch.stack([part.double().mean(0) for part in x.split(lengths)])
    pooled = mean_pool(x, where)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled.double(), exact, atol=5e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("int8", marks=needs_int8)])
def test_compiled_layers_serve_every_batch_with_one_compilation(demo: ClipModel, dtype: str):
    """Batches of other lengths and counts run without a compilation of their own, and agree.

    In int8 each compilation takes half a minute, and the ninth ends the compiler's patience.
    """
    from torch._dynamo.testing import CompileCounterWithBackend

    checkpoint, place = Checkpoint.open("demo"), loading.place("cpu", dtype)
    with torch.device("meta"):
        attend = packed_attention(PackedKernels("sdpa", "sdpa"))
        tower = TextEncoder(checkpoint.architecture.text, attend)
    fill(tower, checkpoint.text_weights(), place, arranges=place.int8)
    counter = CompileCounterWithBackend("eager")
    tower._run_layer = torch.compile(Layer.forward, dynamic=True, fullgraph=True, backend=counter)
    runner = TextRunner(tower, CPU)
    for lengths in ((48, 17, 5), (30,), (7, 7, 7, 7), (120, 3)):
        batch = texts(lengths)
        rows, exact = runner.launch(batch).rows(), demo.embed_tokens(batch)
        np.testing.assert_allclose(rows, exact, atol=0.1 if place.int8 else 1e-5)
    assert counter.frame_count == 1


def test_compiling_is_for_gpus_unless_asked_for():
    """`auto` compiles on CUDA only; unknown modes are refused."""
    assert resolve("auto", torch.device("cuda"))
    assert not resolve("auto", CPU)
    assert resolve("on", CPU)
    assert not resolve("off", torch.device("cuda"))
    with pytest.raises(OptionError, match="compile is 'fast'; choose one of auto, on, off"):
        resolve("fast", CPU)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([0, 14500, 2], OptionError, "token ids from 0 to 14500, the model knows 0 to 14499"),
        ([0, -1, 2], OptionError, "token ids from -1"),
        ([0] * 8193, TextTooLongError, "text 1 has 8,193 tokens, the limit is 8,192"),
    ],
)
def test_ids_that_would_stop_a_device_are_refused_on_the_host(
    demo: ClipModel, ids: list[int], error: type[Exception], message: str
):
    """An index out of range is the caller's error, named by its place in the batch."""
    with pytest.raises(error, match=message):
        demo.embed_tokens([np.array([0, 2], np.int32), np.array(ids, np.int32)])


def test_batches_keep_to_both_budgets():
    """Texts go longest first, in batches within the numbers of texts and of tokens."""
    batches = list(text_batches(texts((5, 90, 30, 30, 8)), max_sequences=2, max_tokens=100))
    assert batches == [[1], [2, 3], [4, 0]]


def test_a_budget_that_does_not_fit_is_refused_with_the_largest_that_does(
    monkeypatch: pytest.MonkeyPatch,
):
    """Full batches are tried on the device, down to the largest that it can hold."""
    tried = []

    def run(size: int) -> None:
        tried.append(size)
        if size > 5000:
            raise torch.OutOfMemoryError("no")

    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**30, 2**31))
    message = "max_batch_tokens=16,384 does not fit .* the largest that fits is 4,096"
    with pytest.raises(OptionError, match=message):
        memory.require(run, 16384, 1024, "max_batch_tokens", torch.device("cuda"))
    assert tried[0] == 16384
    assert 5120 in tried


def test_warm_up_covers_the_longest_texts_the_most_texts_and_both_at_once():
    """The ends of a budget keep to it; the last has a long context and more than 256 texts."""
    long, many, both = text_extremes(1000, 64, 300)
    assert long == [300, 300, 300, 100]
    assert many == [15] * 64
    assert both == [300] + [2] * 63
    *_, both = text_extremes(16384, 512, 8192)
    assert (len(both), sum(both)) == (301, 8792)
    packed = pack(texts(both), 1)
    assert packed.segments.mean_context > LONG_CONTEXT


@pytest.mark.parametrize(("tokens", "longest"), [(16384, 8192), (4096, 8192), (2048, 512)])
def test_no_two_numbers_of_the_first_batch_are_equal(tokens: int, longest: int):
    """The compiler would take equal numbers for one and compile again where they differ."""
    lengths = unlike(tokens, longest)
    packed = pack(texts(lengths), 1)
    seen = packed.segments.max_length, packed.segments.mean_context, len(packed.token_ids)
    assert len({*seen, len(packed.segments.cu_seqlens)}) == 4
    assert tokens / 2 < sum(lengths) <= tokens
    assert 4 < min(lengths) <= max(lengths) <= longest


def test_warm_up_on_a_cpu_runs_both_towers_and_reports(demo: ClipModel):
    """A CPU is warmed with small batches, has no graphs, and reports no device memory."""
    report = demo.warm_up(max_batch_tokens=10**9, max_batch_images=2)
    assert report.seconds > 0
    assert (report.text_peak_bytes, report.vision_peak_bytes) == (0, 0)
    assert demo._text._graphs == {}
