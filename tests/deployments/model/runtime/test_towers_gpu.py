"""The towers on a GPU: every kernel that runs there, compiled and captured, against float32."""

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch

from deployments.model import ClipModel
from deployments.model.errors import OptionError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

DTYPES = ("bfloat16", "float16")


def cosines(rows, expected):
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(expected, axis=1)
    return (rows * expected).sum(axis=1) / norms


def token_ids(golden) -> list[np.ndarray]:
    return [np.array(text["ids"], dtype=np.int32) for text in golden.texts]


# Where a kernel's library is; torch carries the others.
LIBRARIES = {
    "flash2": "flash_attn.flash_attn_interface",
    "flash4": "flash_attn.cute",
    "xformers": "xformers.ops",
}


def load(**options: Any) -> ClipModel:
    return ClipModel.load(device="cuda", **options)


def require_library(attention: str) -> None:
    """Skip where a kernel's library is missing; one that is installed has to run."""
    library = LIBRARIES.get(attention, "torch")
    try:
        found = importlib.util.find_spec(library)
    except ModuleNotFoundError:
        found = None
    if found is None:
        pytest.skip(f"{library} is not installed")


def test_float32_equals_the_golden_vectors(golden):
    """In float32 a GPU gives the oracle's rows within 1e-5, without TF32."""
    model = load(dtype="float32", compile="off")
    rows = model.embed_tokens(token_ids(golden))
    np.testing.assert_allclose(rows, golden.arrays["text_raw"], atol=1e-5)
    rows = model.embed_pixels(golden.arrays["crops"])
    np.testing.assert_allclose(rows, golden.arrays["image_raw"], atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("attention", ["auto", "sdpa", "varlen", "flash2", "flash4", "efficient"])
def test_every_text_kernel_keeps_the_cosine(golden, attention: str, dtype: str):
    """Half-precision rows lie at a cosine of at least 0.9995 to the golden ones."""
    require_library(attention)
    model = load(dtype=dtype, attention=attention, compile="off", towers=("text",))
    rows = model.embed_tokens(token_ids(golden))
    assert cosines(rows, golden.arrays["text_raw"]).min() >= 0.9995


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("attention", ["auto", "sdpa", "cudnn", "flash2", "flash4", "xformers"])
def test_every_vision_kernel_keeps_the_cosine(golden, attention: str, dtype: str):
    """Half-precision rows lie at a cosine of at least 0.9995 to the golden ones."""
    if attention != "flash2":  # torch carries it for images
        require_library(attention)
    model = load(dtype=dtype, attention=attention, compile="off", towers=("vision",))
    rows = model.embed_pixels(golden.arrays["crops"])
    assert cosines(rows, golden.arrays["image_raw"]).min() >= 0.9995


def test_graphs_and_compiled_blocks_give_the_same_rows_in_any_batch(golden):
    """After warm-up, rows one by one (graphs) and all at once (compiled) keep the cosine."""
    model = load(dtype="bfloat16")
    report = model.warm_up(4096, 64, 8)
    assert model._text._graphs
    assert model._vision._graphs
    assert report.text_peak_bytes > 0
    ids = token_ids(golden)
    for batches in ([ids], [[one] for one in ids], [ids[:3], ids[3:9], ids[9:]]):
        rows = np.concatenate([model.embed_tokens(batch) for batch in batches])
        assert cosines(rows, golden.arrays["text_raw"]).min() >= 0.9995
    crops = golden.arrays["crops"]
    for batches in ([crops], [crops[:1], crops[1:4], crops[4:]]):
        rows = np.concatenate([model.embed_pixels(batch) for batch in batches])
        assert cosines(rows, golden.arrays["image_raw"]).min() >= 0.9995


def test_launched_batches_do_not_disturb_each_other(golden):
    """Rows collected after later batches were queued are still those of their own batch."""
    model = load(dtype="bfloat16")
    model.warm_up(2048, 64, 4)
    ids = token_ids(golden)
    pending = [model.launch_tokens([one]) for one in ids]
    rows = np.concatenate([one.rows() for one in pending])
    assert cosines(rows, golden.arrays["text_raw"]).min() >= 0.9995


def test_a_budget_beyond_the_devices_memory_is_refused():
    """Warm-up names the largest number of images that fits, and the model still works."""
    model = load(dtype="float32", towers=("vision",), compile="off")
    torch.cuda.set_per_process_memory_fraction(0.01)
    try:
        with pytest.raises(OptionError, match=r"max_batch_images=8,192 .* that fits is [1-9]"):
            model.warm_up(max_batch_images=8192)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert model.embed_pixels(np.zeros((1, 120, 120, 3), np.uint8)).any()


def test_jpegs_decoded_on_the_gpu_keep_the_cosine(golden):
    """Whole pictures through the GPU's decoder and resizer give nearly the exact vectors."""
    model = load(dtype="float32", image_decode="gpu", compile="off")
    decoded = model.decode_images([*golden.image_bytes(), b"broken"])
    assert list(decoded.failures) == [len(golden.images)]
    rows = model.embed_pixels(decoded.pixels)
    assert cosines(rows, golden.arrays["image_raw"]).min() >= 0.999
