"""The towers' GPU path without a GPU: fake tensors know devices, types and shapes, not values."""

from collections.abc import Callable, Iterator
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from deployments.model.towers import attention
from deployments.model.towers.packing import GraphShape, PackedTexts, pack
from deployments.model.towers.text import TextEncoder
from deployments.model.towers.vision import CUDA_MLP_MULTIPLE, VisionEncoder
from deployments.model.weights.checkpoint import Checkpoint

GPU = torch.device("cuda:0")
ARCHITECTURE = Checkpoint.open("demo").architecture


@pytest.fixture(autouse=True)
def fake_gpu() -> Iterator[None]:
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        yield


def on_gpu(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a tower in bfloat16, as it is loaded on a GPU."""
    with GPU:
        tower = build()
    for module in tower.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                half = nn.Parameter(parameter.to(torch.bfloat16), requires_grad=False)
                module._parameters[name] = half
    return tower


def text_tower() -> nn.Module:
    kernels = attention.PackedKernels("varlen", "flash4")
    return on_gpu(lambda: TextEncoder(ARCHITECTURE.text, attention.packed_attention(kernels)))


def packed(shape: GraphShape | None) -> PackedTexts:
    batch = [np.zeros(length, dtype=np.int32) for length in (5, 9)]
    host = pack(batch, 1, shape)
    return host.on(torch.empty_like(host.buffer, device=GPU))


@pytest.mark.parametrize(("shape", "rows"), [(None, 2), (GraphShape(16, 4, 16), 5)])
def test_the_text_tower_never_leaves_the_gpu(shape: GraphShape | None, rows: int):
    """Ids, tables, layers and pooling are on one device; each step that mixes two would raise."""
    row = text_tower()(packed(shape))
    assert (row.device, row.dtype) == (GPU, torch.float32)
    assert row.shape == (rows, ARCHITECTURE.width)


def test_the_vision_tower_never_leaves_the_gpu():
    """Pixels, constants, the padded MLP and the last norm are on one device."""
    kernel = attention.dense_attention("cudnn")
    tower = on_gpu(lambda: VisionEncoder(ARCHITECTURE.vision, kernel, CUDA_MLP_MULTIPLE))
    size = ARCHITECTURE.vision.image_size
    row = tower(torch.empty(3, size, size, 3, dtype=torch.uint8, device=GPU))
    assert (row.device, row.dtype) == (GPU, torch.float32)
    assert row.shape == (3, ARCHITECTURE.width)


def test_a_table_left_on_the_host_would_be_found():
    """The fake devices are told apart, or the tests above could not fail."""
    tower = text_tower()

    def on_host(device: torch.device) -> tuple[Tensor, Tensor]:
        shape = (ARCHITECTURE.text.max_tokens, 1, 1, ARCHITECTURE.text.head_dim)
        return torch.ones(shape), torch.ones(shape)

    with patch.object(tower, "_rotary_tables", on_host), pytest.raises(RuntimeError, match="cpu"):
        tower(packed(None))
