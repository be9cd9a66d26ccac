"""What the compiler makes of the towers for cards that are not here, and how often it compiles."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode

from deployments.model.towers import attention
from deployments.model.towers.packing import pack
from deployments.model.towers.text import Layer, TextEncoder
from deployments.model.towers.vision import CUDA_MLP_MULTIPLE, Block, VisionEncoder
from deployments.model.weights.checkpoint import Checkpoint
from tests.deployments.model.towers.lowering import CARDS, GPU, USAGE, on_gpu

ARCHITECTURE = Checkpoint.open("demo").architecture
TEXT = replace(ARCHITECTURE.text, num_hidden_layers=2)  # all layers are alike
VISION = replace(ARCHITECTURE.vision, layers=2)
# Of each compiled part: the kernels that Inductor writes, and the matrix products. Text: one
# layer. Vision: what comes before the blocks, and one block.
EXPECTED = {"text": [(3, 4)], "vision": [(3, 1), (6, 4)]}


@pytest.mark.skipif(not USAGE.exists(), reason="this Triton does not come with NVIDIA's tools")
@pytest.mark.parametrize(
    ("card", "tower"),
    [
        pytest.param(
            card, tower, marks=[] if (card, tower) == ("H100", "text") else pytest.mark.lowering
        )
        for card in CARDS
        for tower in EXPECTED
    ],
)
def test_a_tower_is_few_kernels_that_keep_to_their_registers(card: str, tower: str):
    """At the published sizes, in every configuration that the card would try."""
    command = [sys.executable, "-m", "tests.deployments.model.towers.lowering", card, tower]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=250)
    parts = json.loads(done.stdout)["parts"]
    assert [(len(part["kernels"]), part["products"]) for part in parts] == EXPECTED[tower]
    uses = [use for part in parts for kernel in part["kernels"].values() for use in kernel]
    assert all(use["spilled_bytes"] == 0 for use in uses)
    assert all(0 < use["registers"] < 255 for use in uses)


@pytest.fixture(autouse=True)
def nothing_compiled():
    """What was compiled before would show in the numbers."""
    torch._dynamo.reset()


def compilations(function) -> CompileCounterWithBackend:
    """Compile a block's method with a backend that counts."""
    counter = CompileCounterWithBackend("eager")
    counter.run = torch.compile(function, dynamic=True, fullgraph=True, backend=counter)
    return counter


def test_all_texts_are_one_compilation():
    """Whatever their number, lengths and sum, in any order; a lone text of one token too."""
    kernels = attention.packed_attention(attention.PackedKernels("varlen", "flash4"))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        tower = on_gpu(lambda: TextEncoder(TEXT, kernels), torch.bfloat16)
        counter = compilations(Layer.forward)
        tower._run_layer = counter.run
        for lengths in ((700, 600, 90), (30,), (7, 7, 7, 7), (1500, *[3] * 300), (128,) * 16):
            host = pack([np.zeros(length, np.int32) for length in lengths], 1)
            tower(host.on(torch.empty_like(host.buffer, device=GPU)))
    assert counter.frame_count == 1


@pytest.mark.parametrize(("first", "blocks"), [(31, 2), (32, 3)])
def test_images_are_a_compilation_for_one_and_a_compilation_for_more(first: int, blocks: int):
    """The compiler takes 1 for a constant, and 32 too if it sees that first.

    A head has 32 pairs, and equal numbers are one to the compiler. A warm-up begins with 32, so a
    full batch of the default budget has code of its own.
    """
    kernel, size = attention.dense_attention("cudnn"), VISION.image_size
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        tower = on_gpu(lambda: VisionEncoder(VISION, kernel, CUDA_MLP_MULTIPLE), torch.bfloat16)
        counter, embeddings = compilations(Block.forward), compilations(VisionEncoder.embed)
        tower._run_block, tower._run_embed = counter.run, embeddings.run
        for number in (first, 8, 3, 1, 2, 31, 1, 32):
            tower(torch.empty(number, size, size, 3, dtype=torch.uint8, device=GPU))
    assert (counter.frame_count, embeddings.frame_count) == (blocks, 2)
