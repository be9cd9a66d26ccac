import importlib.util
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from deployments.model.errors import OptionError
from deployments.model.towers import kernels
from deployments.model.towers.attention import (
    LONG_CONTEXT,
    PackedKernels,
    Segments,
    dense_attention,
    dense_sdpa,
    packed_attention,
    packed_sdpa,
    preferred,
    resolve_dense,
    resolve_packed,
)

CPU = torch.device("cpu")
LENGTHS = (9, 9, 5, 3, 3, 1)


def segments(lengths: tuple[int, ...], known: bool = True) -> Segments:
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    return Segments(bounds, max(lengths), max(lengths), lengths if known else ())


def packed_qkv(lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return list(torch.randn((3, sum(lengths), 2, 8), generator=generator))


def one_by_one(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """The definition in float64, text after text and head after head."""
    parts = []
    for q1, k1, v1 in zip(*(x.double().split(lengths) for x in (q, k, v)), strict=True):
        scores = torch.einsum("qhd,khd->hqk", q1, k1) / q1.shape[-1] ** 0.5
        parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v1))
    return torch.cat(parts)


@pytest.mark.parametrize("known", [True, False], ids=["lengths known", "lengths on the device"])
def test_packed_sdpa_attends_within_each_text_only(known: bool):
    """Packed rows equal the definition applied to each text, and not to all texts as one."""
    q, k, v = packed_qkv()
    out = packed_sdpa(q, k, v, segments(LENGTHS, known))
    torch.testing.assert_close(out.double(), one_by_one(q, k, v, LENGTHS), atol=1e-5, rtol=0)
    as_one = one_by_one(q, k, v, (sum(LENGTHS),))
    assert (out - as_one).abs().max() > 0.1


def test_a_single_group_of_equal_texts_needs_no_joining():
    """Texts of one length run as one call and equal the definition."""
    lengths = (4, 4, 4)
    q, k, v = packed_qkv(lengths)
    out = packed_sdpa(q, k, v, segments(lengths))
    torch.testing.assert_close(out.double(), one_by_one(q, k, v, lengths), atol=1e-5, rtol=0)


def test_the_operator_gives_what_sdpa_gives():
    """The form that torch.compile sees returns the same values as the plain function."""
    q, k, v = packed_qkv()
    attend = packed_attention(PackedKernels("sdpa", "sdpa"))
    expected = packed_sdpa(q, k, v, segments(LENGTHS))
    torch.testing.assert_close(attend(q, k, v, segments(LENGTHS)), expected, atol=0, rtol=0)


def test_the_operators_shapes_for_the_compiler_are_those_of_the_values():
    """Each operator passes torch's own checks of schema, fake values and tracing."""
    q, k, v = packed_qkv()
    bounds = segments(LENGTHS).cu_seqlens
    packed = torch.ops.jina_clip_serve.packed_attention.default
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(packed, (q, k, v, bounds, 9, 6, "sdpa", "sdpa"), test_utils=tests)
    dense = torch.ops.jina_clip_serve.dense_attention.default
    torch.library.opcheck(dense, (q[None], k[None], v[None], "sdpa"), test_utils=tests)


@pytest.mark.parametrize(
    ("context", "used"), [(LONG_CONTEXT, "varlen"), (LONG_CONTEXT + 1, "flash4")]
)
def test_what_tokens_see_on_average_chooses_the_kernel(
    monkeypatch: pytest.MonkeyPatch, context: int, used: str
):
    """One long text among many short ones does not take the kernel for long texts."""
    calls = []

    def fake(name: str) -> kernels.PackedKernel:
        def kernel(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int) -> Tensor:
            calls.append((name, cu_seqlens.tolist(), longest))
            return v.clone()

        return kernel

    for name in ("varlen", "flash4"):
        monkeypatch.setitem(kernels.PACKED, name, fake(name))
    q, k, v = packed_qkv((2, 1))
    where = Segments(torch.tensor([0, 2, 3], dtype=torch.int32), 9000, context)
    out = packed_attention(PackedKernels("varlen", "flash4"))(q, k, v, where)
    assert calls == [(used, [0, 2, 3], 9000)]
    assert torch.equal(out, v)


def test_dense_attention_runs_the_named_kernel(monkeypatch: pytest.MonkeyPatch):
    """The vision operator calls the kernel of that name, and SDPA under its own."""
    monkeypatch.setitem(kernels.DENSE, "xformers", lambda q, k, v: v * 2)
    q, k, v = (x[None] for x in packed_qkv())
    assert torch.equal(dense_attention("xformers")(q, k, v), v * 2)
    torch.testing.assert_close(dense_attention("sdpa")(q, k, v), dense_sdpa(q, k, v))


def test_flash_attention_libraries_get_the_same_bounds_for_queries_and_keys(
    monkeypatch: pytest.MonkeyPatch,
):
    """The two libraries are called with their own argument names, and a tuple is unwrapped."""
    seen: list[tuple[object, ...]] = []
    flash2, flash4 = ModuleType("flash_attn"), ModuleType("flash_attn.cute")

    def varlen2(q, k, v, cu_q, cu_k, max_q, max_k):
        seen.append((cu_q is cu_k, max_q, max_k))
        return v

    def varlen4(q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
        seen.append((cu_seqlens_q is cu_seqlens_k, max_seqlen_q, max_seqlen_k))
        return v, None

    flash2.flash_attn_varlen_func = varlen2
    flash4.flash_attn_varlen_func = varlen4
    monkeypatch.setitem(sys.modules, "flash_attn", flash2)
    monkeypatch.setitem(sys.modules, "flash_attn.cute", flash4)
    q, k, v = packed_qkv()
    bounds = segments(LENGTHS).cu_seqlens
    assert kernels.flash2(q, k, v, bounds, 9) is v
    assert kernels.flash4(q, k, v, bounds, 9) is v
    assert seen == [(True, 9, 9)] * 2


def test_auto_is_sdpa_on_a_cpu():
    """Without a GPU, both towers use SDPA."""
    assert resolve_packed("auto", CPU, torch.float32) == PackedKernels("sdpa", "sdpa")
    assert resolve_dense("auto", CPU, torch.float32, (1, 4, 2, 8)) == "sdpa"


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> torch.device:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    return torch.device("cuda")


def test_auto_on_a_gpu_takes_what_runs_there(monkeypatch: pytest.MonkeyPatch):
    """Kernels that fail their trial are left out; the last that runs takes the long texts."""
    faults = {"varlen": "", "flash2": "ImportError: absent", "flash4": "", "efficient": ""}
    monkeypatch.setattr(
        "deployments.model.towers.attention._packed_fault", lambda name, *_: faults[name]
    )
    gpu = on_a_gpu(monkeypatch, (9, 0))
    assert resolve_packed("auto", gpu, torch.bfloat16) == PackedKernels("varlen", "flash4")
    faults["flash4"] = "RuntimeError: no compiler"
    assert resolve_packed("auto", gpu, torch.bfloat16) == PackedKernels("varlen", "varlen")
    assert str(resolve_packed("auto", gpu, torch.float32)) == "efficient"
    faults["efficient"] = "RuntimeError: no kernel"
    assert str(resolve_packed("auto", gpu, torch.float32)) == "sdpa"


@pytest.mark.parametrize(
    ("capability", "chosen"),
    [((8, 9), "varlen+flash2"), ((8, 0), "varlen+flash2"), ((7, 5), "efficient")],
)
def test_older_gpus_do_not_take_flash_attention_4(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], chosen: str
):
    """It would run there, but its kernel for them is not tuned; below Ampere none runs."""
    monkeypatch.setattr("deployments.model.towers.attention._packed_fault", lambda *_: "")
    gpu = on_a_gpu(monkeypatch, capability)
    assert str(resolve_packed("auto", gpu, torch.float16)) == chosen


def test_the_vision_kernel_is_the_first_by_order_unless_another_is_clearly_faster():
    """Two replicas whose measured times differ by 3% choose alike."""
    assert preferred({"cudnn": 1.00, "flash4": 0.97, "sdpa": 1.5}) == "cudnn"
    assert preferred({"cudnn": 1.03, "flash4": 1.00, "sdpa": 1.5}) == "cudnn"
    assert preferred({"cudnn": 1.00, "flash4": 0.89, "sdpa": 1.5}) == "flash4"


def test_one_split_keeps_torch_from_taking_cudnn(monkeypatch: pytest.MonkeyPatch):
    """CuDNN would plan anew for every number of tokens; where torch can be told, it is."""
    seen = []

    def newer(q, k, v, *bounds, num_splits=None):
        seen.append(num_splits)
        return v

    def older(q, k, v, *bounds):
        seen.append("older")
        return v, None

    q, k, v = packed_qkv()
    for function in (newer, older):
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", function)
        kernels._takes_num_splits.cache_clear()
        assert kernels.varlen(q, k, v, segments(LENGTHS).cu_seqlens, 9) is v
    kernels._takes_num_splits.cache_clear()
    assert seen == [1, "older"]


def test_a_kernel_that_gives_other_values_is_refused(monkeypatch: pytest.MonkeyPatch):
    """A named kernel is tried against SDPA before it is used, and the gap is named."""
    monkeypatch.setitem(kernels.PACKED, "flash2", lambda q, k, v, bounds, longest: v.clone())
    with pytest.raises(OptionError, match=r"flash2.*differs from SDPA by"):
        resolve_packed("flash2", CPU, torch.float32)
    monkeypatch.setitem(kernels.DENSE, "xformers", lambda q, k, v: dense_sdpa(q, k, v))
    assert resolve_dense("xformers", CPU, torch.float32, (1, 4, 2, 8)) == "xformers"


@pytest.mark.skipif(
    importlib.util.find_spec("flash_attn") is not None, reason="the library is installed here"
)
def test_a_missing_library_is_named():
    """Asking for a kernel whose library is missing is an error that names it."""
    with pytest.raises(OptionError, match="No module named 'flash_attn'"):
        resolve_packed("flash4", CPU, torch.float32)


def test_a_name_of_the_other_tower_only_counts_as_auto():
    """`varlen` is the text tower's; the vision tower then chooses for itself."""
    assert resolve_dense("varlen", CPU, torch.float32, (1, 4, 2, 8)) == "sdpa"


def test_an_unknown_name_is_refused():
    """The error lists the kernels there are."""
    with pytest.raises(OptionError, match=r"'magic'; choose 'auto' or one of .*sdpa"):
        resolve_packed("magic", CPU, torch.float32)
