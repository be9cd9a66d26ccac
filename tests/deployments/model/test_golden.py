"""The shipped checkpoint against vectors that third-party towers computed from the same file."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.model import ClipModel
from deployments.model.pictures.image import open_image, to_pixels
from deployments.model.weights.source import DEMO, FILES

MAX_TOKENS = 8192


def unit(rows: Any) -> Any:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def token_ids(model: ClipModel, texts: list[dict[str, Any]]) -> list[Any]:
    return [
        model.tokenizer.encode([t["text"]], t["task"], min(t["max_length"], MAX_TOKENS), True)[0]
        for t in texts
    ]


def text_vectors(model: ClipModel, texts: list[dict[str, Any]]) -> Any:
    return unit(model.embed_tokens(token_ids(model, texts)))


def mean_cosine(rows: Any, others: Any) -> float:
    return float((rows * others).sum(axis=1).mean())


def wrong_model(folder: Path, change: Any) -> ClipModel:
    """Load the shipped weights under a configuration with one trait changed."""
    for name in FILES:
        (folder / name).symlink_to(DEMO / name)
    config = json.loads((DEMO / "config.json").read_text())
    change(config["text_config"]["hf_model_config_kwargs"], config["vision_config"])
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    return ClipModel.load(folder)


def test_token_ids_are_the_golden_ones(demo, golden) -> None:
    """Every text gives the golden ids: 20 scripts, specials in the text, empty, cut and whole."""
    found = [ids.tolist() for ids in token_ids(demo, golden.texts)]
    assert found == [text["ids"] for text in golden.texts]


def test_the_golden_texts_cover_the_hard_cases(golden) -> None:
    """Empty, a literal pad, cut at 512 and longer than 512 are among them."""
    lengths = {text["name"]: len(text["ids"]) for text in golden.texts}
    pads = {text["name"] for text in golden.texts if 1 in text["ids"]}
    assert (lengths["empty"], lengths["long-512"], lengths["long-full"]) == (2, 512, 1832)
    assert pads == {"pad-literal"}


def test_text_vectors_are_the_golden_ones(demo, golden) -> None:
    """Normalised rows agree within 1e-5, all texts in one batch."""
    rows = text_vectors(demo, golden.texts)
    np.testing.assert_allclose(rows, golden.arrays["text_unit"], rtol=0, atol=1e-5)


def test_text_vectors_come_out_of_encode_text(demo, golden) -> None:
    """The public call gives the golden rows for every text without a shorter limit."""
    for task in (None, "retrieval.query"):
        rows = [
            i
            for i, text in enumerate(golden.texts)
            if text["task"] == task and len(text["ids"]) != 512
        ]
        found = demo.encode_text([golden.texts[i]["text"] for i in rows], task=task)
        np.testing.assert_allclose(found, golden.arrays["text_unit"][rows], rtol=0, atol=1e-5)


def test_crops_are_the_golden_ones(demo, golden) -> None:
    """Preprocessing gives the golden pixels bit by bit, from 1x1 to 2000x1500, in every mode."""
    size = demo.architecture.vision.image_size
    for facts, data, crop in zip(
        golden.images, golden.image_bytes(), golden.arrays["crops"], strict=True
    ):
        pixels = to_pixels(open_image(data), size)
        np.testing.assert_array_equal(pixels, crop, err_msg=facts["file"])
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == facts["crop_sha256"]


def test_image_vectors_are_the_golden_ones(demo, golden) -> None:
    """Normalised rows agree within 1e-5, from the encoded bytes."""
    rows = demo.encode_image(golden.image_bytes())
    np.testing.assert_allclose(rows, golden.arrays["image_unit"], rtol=0, atol=1e-5)


def test_logits_are_the_golden_ones(demo, golden) -> None:
    """The trained temperature and both towers give the golden image-text logits."""
    rows = text_vectors(demo, golden.texts)
    logits = np.exp(demo.logit_scale) * demo.encode_image(golden.image_bytes()) @ rows.T
    np.testing.assert_allclose(logits, golden.arrays["logits"], rtol=0, atol=1e-3)


def test_without_the_adapter_the_vectors_are_the_golden_wrong_ones(golden, tmp_path) -> None:
    """Scale 0 gives exactly what the oracle gives with the adapters left out, far from right."""
    model = wrong_model(tmp_path, lambda text, _: text.update(lora_alpha=0))
    rows = text_vectors(model, golden.texts)
    wrong = unit(golden.arrays["text_raw_adapter_off_first16"])
    np.testing.assert_allclose(rows[:16], wrong, rtol=0, atol=1e-5)
    expected = golden.negative_controls["adapter_off"]["mean"]
    assert mean_cosine(rows, golden.arrays["text_unit"]) == pytest.approx(expected, abs=1e-3)


def test_a_quarter_of_the_adapter_is_as_wrong_as_the_oracle_says(golden, tmp_path) -> None:
    """The scale of jina-embeddings-v3 moves the vectors to the recorded mean cosine."""
    model = wrong_model(tmp_path, lambda text, _: text.update(lora_alpha=1))
    cosine = mean_cosine(text_vectors(model, golden.texts), golden.arrays["text_unit"])
    assert cosine == pytest.approx(
        golden.negative_controls["adapter_scale_quarter"]["mean"], abs=1e-3
    )


def test_rope_base_10000_is_as_wrong_as_the_oracle_says(golden, tmp_path) -> None:
    """The class default of the published code is told apart, on the long text most of all."""
    model = wrong_model(tmp_path, lambda text, _: text.update(rotary_emb_base=10000.0))
    index = [text["name"] for text in golden.texts].index("long-full")
    rows = text_vectors(model, golden.texts)[index : index + 1]
    expected = golden.negative_controls["text_rope_base_10000"]["long-full"]
    cosine = mean_cosine(rows, golden.arrays["text_unit"][index : index + 1])
    assert cosine == pytest.approx(expected, abs=1e-4)


def test_unscaled_positions_are_as_wrong_as_the_oracle_says(golden, tmp_path) -> None:
    """A vision tower whose grid is not mapped on the pretrained one is told apart."""
    model = wrong_model(tmp_path, lambda _, vision: vision.update(pt_hw_seq_len=8))
    cosine = mean_cosine(model.encode_image(golden.image_bytes()), golden.arrays["image_unit"])
    expected = golden.negative_controls["vision_rope_without_rescaling"]["mean"]
    assert cosine == pytest.approx(expected, abs=1e-3)
