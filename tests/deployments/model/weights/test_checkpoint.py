"""Strict loading, and the published tensor table."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from deployments.model import ClipModel
from deployments.model.architecture import Architecture, TextArchitecture, VisionArchitecture
from deployments.model.errors import CheckpointError
from deployments.model.weights.checkpoint import (
    LOGIT_SCALE,
    TEXT_PREFIX,
    VISION_PREFIX,
    Checkpoint,
    expected_shapes,
)
from deployments.model.weights.source import FILES

PUBLISHED = expected_shapes(Architecture(TextArchitecture(), VisionArchitecture(), ()))
OTHER_FILES = [name for name in FILES if name != "model.safetensors"]
BIAS = "text_model.transformer.roberta.encoder.layers.1.mlp.fc1.bias"
CLS = "vision_model.cls_token"


def elements(prefix: str) -> int:
    return sum(int(np.prod(s)) for name, s in PUBLISHED.items() if name.startswith(prefix))


def with_tensors(source: Path, folder: Path, change: Any) -> Path:
    """Copy a checkpoint with its dictionary of tensors changed in place."""
    for name in OTHER_FILES:
        (folder / name).symlink_to(source / name)
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_published_table_has_the_published_counts() -> None:
    """999 tensors; 865,278,477 elements, of the text tower, the vision tower and one scalar."""
    assert len(PUBLISHED) == 999
    assert PUBLISHED[LOGIT_SCALE] == ()
    assert elements(TEXT_PREFIX) == 560_895_564
    assert elements(VISION_PREFIX) == 304_382_912
    assert elements("") == 865_278_477


def test_the_published_table_has_the_published_checksum() -> None:
    """Names and shapes, in the canonical form of the model's specification, hash to its value."""
    lines = sorted(f"{name}\t{'x'.join(map(str, shape))}" for name, shape in PUBLISHED.items())
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert digest == "664455c62c56c6991f79b30dad375fdf15161001139074d4723d120cc241c6ef"


def test_the_published_table_gives_the_published_file_size() -> None:
    """A safetensors file of these F16 tensors has exactly the size of the published one."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(PUBLISHED):
        end = offset + 2 * int(np.prod(PUBLISHED[name]))
        shape = list(PUBLISHED[name])
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    length = len(json.dumps(header, separators=(",", ":")))
    assert 8 + -(-length // 8) * 8 + offset == 1_730_688_642


def test_a_missing_tensor_is_named(reduced_folder, tmp_path) -> None:
    """A checkpoint without one tensor is refused, though the other tower alone is asked for."""
    folder = with_tensors(reduced_folder, tmp_path, lambda t: t.pop(BIAS))
    with pytest.raises(CheckpointError, match=f"missing {re.escape(BIAS)}"):
        ClipModel.load(folder, towers=("vision",))


def test_an_unexpected_tensor_is_named(reduced_folder, tmp_path) -> None:
    """One tensor too many is refused: a k bias, as other EVA checkpoints have it."""
    name = "vision_model.blocks.0.attn.k_bias"
    folder = with_tensors(
        reduced_folder, tmp_path, lambda t: t.update({name: torch.zeros(88).half()})
    )
    with pytest.raises(CheckpointError, match=f"unexpected {re.escape(name)}"):
        Checkpoint(folder)


def test_a_mis_shaped_tensor_is_named_with_both_shapes(reduced_folder, tmp_path) -> None:
    """The message holds the shape found and the shape that the configuration asks for."""
    folder = with_tensors(
        reduced_folder, tmp_path, lambda t: t.update({CLS: t[CLS].reshape(1, 88)})
    )
    expected = rf"{re.escape(CLS)} has shape \(1, 88\), the configuration says \(1, 1, 88\)"
    with pytest.raises(CheckpointError, match=expected):
        Checkpoint(folder)


@pytest.mark.parametrize(
    ("dtype", "stored"), [(torch.int16, "I16"), (torch.float64, "F64"), (torch.bool, "BOOL")]
)
def test_a_tensor_of_another_dtype_is_named(reduced_folder, tmp_path, dtype, stored) -> None:
    """Weights are half or single precision; anything else is refused by name and dtype."""
    folder = with_tensors(reduced_folder, tmp_path, lambda t: t.update({CLS: t[CLS].to(dtype)}))
    with pytest.raises(CheckpointError, match=f"{re.escape(CLS)} has dtype {stored}"):
        Checkpoint(folder)


def test_many_faults_are_counted(reduced_folder, tmp_path) -> None:
    """Five faults are spelled out and the rest counted, so that the message stays readable."""

    def rename_blocks(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.startswith("vision_model.blocks.1.")]:
            tensors[name.replace("blocks.1.", "blocks.7.")] = tensors.pop(name)

    folder = with_tensors(reduced_folder, tmp_path, rename_blocks)
    with pytest.raises(CheckpointError, match=r"(missing [^;]+; ){5}and 37 more$"):
        Checkpoint(folder)


@pytest.mark.parametrize("kept", [0, 7, 5000, -2])
def test_a_cut_off_weights_file_is_refused(reduced_folder, tmp_path, kept) -> None:
    """A download that stopped, at any point, is told from a checkpoint."""
    for name in OTHER_FILES:
        (tmp_path / name).symlink_to(reduced_folder / name)
    data = (reduced_folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:kept])
    with pytest.raises(CheckpointError, match="is not a readable safetensors file"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_float_files_load(reduced_folder, tmp_path, dtype) -> None:
    """F32 and BF16 files hold the same tensors as far as their precision goes."""

    def convert(tensors: dict[str, Any]) -> None:
        tensors |= {name: tensor.to(dtype) for name, tensor in tensors.items()}

    folder = with_tensors(reduced_folder, tmp_path, convert)
    found, expected = (dict(Checkpoint(x).vision_weights()) for x in (folder, reduced_folder))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], tensor.to(dtype).float())


def test_the_digest_is_that_of_the_weights_file(reduced_folder) -> None:
    """`sha256` names the exact weights, and differs when they do."""
    data = (reduced_folder / "model.safetensors").read_bytes()
    assert Checkpoint(reduced_folder).sha256() == hashlib.sha256(data).hexdigest()
    assert Checkpoint.open("demo").sha256().startswith("9f6d54b956fbb2d2")


def test_weights_do_not_point_into_the_file(reduced_folder, tmp_path) -> None:
    """A float32 file may change or go away afterwards: nothing that was read is mapped."""

    def convert(tensors: dict[str, Any]) -> None:
        tensors |= {name: tensor.float() for name, tensor in tensors.items()}

    checkpoint = Checkpoint(with_tensors(reduced_folder, tmp_path, convert))
    kept = dict(checkpoint.vision_weights()) | dict(checkpoint.text_weights())
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.write(b"\0" * (tmp_path / "model.safetensors").stat().st_size)
    expected = Checkpoint(reduced_folder)
    for name, tensor in (*expected.vision_weights(), *expected.text_weights()):
        assert torch.equal(kept[name], tensor), name


def test_the_temperature_is_that_of_the_file(reduced_folder) -> None:
    """The scalar is read as it is stored."""
    stored = load_file(reduced_folder / "model.safetensors")[LOGIT_SCALE].item()
    assert Checkpoint(reduced_folder).logit_scale() == stored
