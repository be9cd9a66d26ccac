"""Native towers against transformers and timm, on random weights in the published layout."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from deployments.model import ClipModel
from deployments.model.weights.checkpoint import EMBEDDINGS, TEXT_PREFIX, Checkpoint

WORDS = ["red", "apple", "12", "grüner", "Apfel", "赤いリンゴ", "яблоко", "تفاحة"]
PAD = 1


@pytest.fixture(scope="module")
def oracle(reduced_folder) -> ClipModel:
    return ClipModel.load(reduced_folder, implementation="reference")


def unit(rows: Any) -> Any:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def random_ids(lengths: list[int], vocab_size: int) -> list[Any]:
    """Token ids over the whole vocabulary, `<s>` first and `</s>` last."""
    random = np.random.default_rng(3)
    rows = [random.integers(3, vocab_size, size=n, dtype=np.int32) for n in lengths]
    for ids in rows:
        ids[0], ids[-1] = 0, 2
    return rows


def assert_same(found: Any, expected: Any) -> None:
    """Compare within 1e-5, and see that rows differ far more from each other than that."""
    np.testing.assert_allclose(unit(found), unit(expected), rtol=0, atol=1e-5)
    assert all(np.abs(a - b).max() > 1e-2 for a, b in pairwise(unit(expected)))


def test_texts_of_mixed_lengths_agree(reduced, oracle) -> None:
    """One batch of 2 to 700 tokens, unsorted, lengths repeated, gives the oracle's rows."""
    ids = random_ids([5, 700, 2, 33, 5, 128, 33, 3, 513], reduced.architecture.text.vocab_size)
    assert_same(reduced.embed_tokens(ids), oracle.embed_tokens(ids))


def test_texts_with_pads_agree(reduced, oracle) -> None:
    """Pads inside and at the end are neither attended to nor pooled, as in the oracle."""
    ids = random_ids([9, 40, 24], reduced.architecture.text.vocab_size)
    ids[0][[3, 4]] = PAD
    ids[1][-7:] = PAD
    assert_same(reduced.embed_tokens(ids), oracle.embed_tokens(ids))


def test_a_pad_in_a_text_moves_the_tokens_after_it(reduced) -> None:
    """A text with a pad differs from the same text without it: positions count the pad."""
    ids = random_ids([9], reduced.architecture.text.vocab_size)[0]
    padded = np.insert(ids, 3, PAD).astype(np.int32)
    rows = unit(reduced.embed_tokens([ids, padded]))
    assert np.abs(rows[0] - rows[1]).max() > 1e-3


@pytest.mark.parametrize("task", [None, "retrieval.query"])
def test_encode_text_agrees(reduced, oracle, task) -> None:
    """Through tokenizer, batching and normalising, both implementations give the same rows."""
    texts = [" ".join(WORDS * n) for n in (1, 90, 3, 1)] + ["", "red <pad> apple"]
    found, expected = (model.encode_text(texts, task, batch_size=4) for model in (reduced, oracle))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_pictures_agree(reduced, oracle) -> None:
    """Noise, a ramp and a plain picture give the oracle's rows."""
    size = reduced.architecture.vision.image_size
    pixels = np.random.default_rng(5).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    pixels[1] = np.linspace(0, 255, size, dtype=np.uint8)[:, None, None]
    pixels[2] = (250, 3, 90)
    assert_same(reduced.embed_pixels(pixels), oracle.embed_pixels(pixels))


def test_the_shipped_checkpoint_agrees(demo, golden) -> None:
    """The oracle as built here gives the golden vectors too, so it is the oracle they came from."""
    model = ClipModel.load("demo", implementation="reference")
    texts = [text["text"] for text in golden.texts[:25]]
    rows = golden.arrays["text_unit"][:25]
    np.testing.assert_allclose(model.encode_text(texts), rows, rtol=0, atol=1e-5)
    images = model.encode_image(golden.image_bytes())
    np.testing.assert_allclose(images, golden.arrays["image_unit"], rtol=0, atol=1e-5)


def test_the_adapter_is_merged_by_the_published_formula(reduced_folder) -> None:
    """W + (alpha / rank) B A for linear layers, E + (alpha / rank) A B for the embeddings."""
    stored = load_file(reduced_folder / "model.safetensors")
    checkpoint = Checkpoint(reduced_folder)
    merged = dict(checkpoint.text_weights())
    for name in (*EMBEDDINGS, "encoder.layers.1.mixer.Wqkv", "encoder.layers.2.mlp.fc2"):
        prefix = f"{TEXT_PREFIX}{name}.parametrizations.weight"
        parts = (f"{prefix}.original", f"{prefix}.0.lora_A", f"{prefix}.0.lora_B")
        base, a, b = (stored[part].double() for part in parts)
        delta = (a[0] @ b[0] if name in EMBEDDINGS else b[0] @ a[0]) * 2 / 3
        torch.testing.assert_close(
            merged[f"{name}.weight"].double(), base + delta, rtol=0, atol=1e-6
        )
        assert delta.abs().max() > 0.01
