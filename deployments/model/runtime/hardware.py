"""What this machine offers a model: GPUs, their driver, and the attention kernels that run."""

import math
import shutil
import subprocess
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from deployments.model.architecture import Architecture
from deployments.model.errors import OptionError
from deployments.model.runtime.runners import inference
from deployments.model.towers import kernels
from deployments.model.towers.attention import resolve_dense, resolve_packed
from deployments.model.towers.linear import Linear
from deployments.model.weights import loading
from deployments.model.weights.checkpoint import (
    TYPES,
    WORDS,
    adapted_modules,
    plain_text_shapes,
    vision_shapes,
)

DRIVER_QUERY = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
QUERY_S = 20
# What kernels are tried at: images of the published model.
DENSE_SHAPE = (2, 1297, 16, 64)
# A batch of one long text through the widest layer of the published text tower.
PRODUCT_SHAPE = (512, 1024, 4096)
PRODUCT_ROUNDS = 5

NOT_INT8 = (TYPES, ".mlp.w3.weight")  # what names of matrices end with that keep their dtype

TowerName = Literal["text", "vision"]


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: as the driver gives it.
        capability: compute capability, such as `9.0`.
        total_bytes: memory.
        free_bytes: memory that nobody uses now.
    """

    name: str
    capability: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Kernels:
    """Attention kernels of one tower.

    Attributes:
        chosen: what `attention="auto"` takes here.
        faults: why each of the others does not run; empty for those that do.
    """

    chosen: str
    faults: dict[str, str]


def gpu_count() -> int:
    """Return how many GPUs torch can use; takes no memory of theirs."""
    return torch.cuda.device_count()


def gpus() -> list[Gpu]:
    """Return the GPUs that torch can use; opens a context on each, which this process keeps."""
    found = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        free_bytes, total_bytes = torch.cuda.mem_get_info(index)
        capability = f"{facts.major}.{facts.minor}"
        found.append(Gpu(facts.name, capability, total_bytes, free_bytes))
    return found


def driver() -> str | None:
    """Return the version of the NVIDIA driver, None where there is none."""
    if shutil.which(DRIVER_QUERY[0]) is None:
        return None
    try:
        done = subprocess.run(
            DRIVER_QUERY, check=False, capture_output=True, text=True, timeout=QUERY_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None


def kernel_choices(device: str, dtype: str, attention: str = "auto") -> dict[str, Kernels]:
    """Try the attention kernels of both towers.

    Raises:
        OptionError: the device, the precision or the asked kernel is not to be had here.
    """
    place = loading.place(device, dtype)

    def text(name: str) -> str:
        return str(resolve_packed(name, place.device, place.dtype))

    def vision(name: str) -> str:
        return resolve_dense(name, place.device, place.dtype, DENSE_SHAPE)

    with inference(place.device):
        return {
            "text": Kernels(text(attention), {x: _fault(text, x) for x in kernels.PACKED}),
            "vision": Kernels(vision(attention), {x: _fault(vision, x) for x in kernels.DENSE}),
        }


def _fault(resolve: Callable[[str], str], name: str) -> str:
    try:
        resolve(name)
    except OptionError as error:
        return str(error)
    return ""


def bfloat16_gain() -> float:
    """Measure how many times faster this CPU multiplies in bfloat16 than in float32."""
    rows, width, columns = PRODUCT_SHAPE
    seconds = []
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            layer = Linear(width, columns, dtype=dtype)
            x = torch.randn(rows, width, dtype=dtype)
            seconds.append(min(timeit.repeat(partial(layer, x), number=1, repeat=PRODUCT_ROUNDS)))
    return seconds[0] / seconds[1]


def weight_bytes(arch: Architecture, tower: TowerName, place: loading.Place) -> int:
    """Return the memory of a tower's weights, adapters merged.

    On a CPU the word embedding stays in the file; of what is read, the system keeps what it can.
    """
    if tower == "vision":
        shapes = vision_shapes(arch.vision)
    else:
        shapes = plain_text_shapes(arch.text) | adapted_modules(arch.text)
        if place.device.type == "cpu":
            del shapes[WORDS]
    total = 0
    for name, shape in shapes.items():
        is_int8 = place.int8 and len(shape) == 2 and not name.endswith(NOT_INT8)
        size = 1 if is_int8 else place.dtype.itemsize
        total += math.prod(shape) * size
    return total


def batch_bytes(arch: Architecture, tower: TowerName, dtype: str, budget: int) -> int:
    """Estimate the memory of a full batch of `budget` tokens or images.

    The widest moment is an MLP: its input, its inner activations and as much again, beside the
    residual and the attention's q, k and v.
    """
    if tower == "vision":
        width, inner = arch.vision.width, 2 * arch.vision.mlp_width
        tokens = budget * arch.vision.num_tokens
    else:
        width, inner, tokens = arch.text.hidden_size, arch.text.intermediate_size, budget
    return tokens * (2 * inner + 6 * width) * loading.DTYPES[dtype].itemsize
