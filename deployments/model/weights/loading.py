"""Builds towers from a checkpoint, with what suits the device."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn

from deployments.model.errors import OptionError
from deployments.model.runtime.compilation import keep_caches
from deployments.model.runtime.memory import trim
from deployments.model.runtime.runners import (
    Images,
    ReferenceRunner,
    Runner,
    TextRunner,
    VisionRunner,
    inference,
)
from deployments.model.tokenizer import TokenIds
from deployments.model.towers import attention as choices
from deployments.model.towers import kernels
from deployments.model.towers.embedding import WordEmbedding
from deployments.model.towers.linear import arrange, int8_fault
from deployments.model.towers.text import TextEncoder
from deployments.model.towers.vision import CUDA_MLP_MULTIPLE, VisionEncoder
from deployments.model.weights.checkpoint import Checkpoint

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

BLOCK = re.compile(r"(encoder\.layers|blocks)\.\d+\.")

# Images that the vision kernels are measured on; for 8, launches take as long as the kernels.
MEASURED_IMAGES = 32


@dataclass(frozen=True)
class Place:
    """Where a tower runs, and in which precision; with `int8`, its linear layers in that."""

    device: torch.device
    dtype: torch.dtype
    int8: bool = False

    @property
    def precision(self) -> str:
        """The name of what it runs in."""
        return "int8" if self.int8 else str(self.dtype).removeprefix("torch.")


LoadText = Callable[[Checkpoint, Place], Runner[Sequence[TokenIds]]]
LoadVision = Callable[[Checkpoint, Place], Runner[Images]]


def place(device: str, dtype: str) -> Place:
    """Turn names into a place; `"auto"` is CUDA where there is one, and a half precision there.

    Raises:
        OptionError: an unknown name, or a device that is not here or has no int8.
    """
    where = _device(device)
    if dtype == "int8":
        if fault := int8_fault(where):
            raise OptionError(f"dtype is 'int8', but {fault}; choose 'auto' or 'bfloat16'")
        return Place(where, torch.bfloat16, int8=True)
    return Place(where, _dtype(dtype, where))


def loaders(implementation: str, attention: str, compile: str) -> tuple[LoadText, LoadVision]:
    """Return what loads each tower.

    Raises:
        OptionError: the implementation is unknown.
    """
    if implementation == "native":
        return (
            partial(load_text, attention=attention, compile=compile),
            partial(load_vision, attention=attention, compile=compile),
        )
    if implementation == "reference":
        return _load_reference_text, _load_reference_vision
    raise OptionError(f"implementation is {implementation!r}, not 'native' or 'reference'")


def load_text(
    checkpoint: Checkpoint, place: Place, attention: str = "auto", compile: str = "off"
) -> TextRunner:
    """Build the text tower.

    Raises:
        OptionError: the attention kernel is unknown or does not run here.
    """
    on_gpu = place.device.type == "cuda"
    if on_gpu:
        keep_caches()
    with inference(place.device):
        names = choices.resolve_packed(attention, place.device, place.dtype)
    attend = choices.packed_attention(names)
    if not on_gpu and compile == "off":
        attend = choices.packed_sdpa  # without the operator's overhead
    words = None if on_gpu else WordEmbedding(checkpoint.words(), place.dtype)
    with torch.device("meta"):
        encoder = TextEncoder(checkpoint.architecture.text, attend, words)
    fill(encoder, checkpoint.text_weights(words is None), place, compile == "off" or place.int8)
    if compile != "off":
        encoder.compile_blocks(required=compile == "on")
    # SDPA asks the device for the lengths of the texts, which no graph can.
    captures = on_gpu and compile != "off" and "sdpa" not in str(names)
    return TextRunner(encoder, place.device, str(names), captures)


def load_vision(
    checkpoint: Checkpoint, place: Place, attention: str = "auto", compile: str = "off"
) -> VisionRunner:
    """Build the vision tower.

    Raises:
        OptionError: the attention kernel is unknown or does not run here.
    """
    on_gpu = place.device.type == "cuda"
    if on_gpu:
        keep_caches()
    arch = checkpoint.architecture.vision
    shape = (MEASURED_IMAGES, arch.num_tokens, arch.num_heads, arch.head_width)
    with inference(place.device):
        name = choices.resolve_dense(attention, place.device, place.dtype, shape)
    attend = choices.dense_attention(name)
    if not on_gpu and compile == "off":
        attend = choices.dense_sdpa
    multiple = CUDA_MLP_MULTIPLE if on_gpu else 1
    with torch.device("meta"):
        encoder = VisionEncoder(arch, attend, multiple)
    fill(encoder, checkpoint.vision_weights(), place, compile == "off" or place.int8)
    if compile != "off":
        encoder.compile_blocks(required=compile == "on")
    return VisionRunner(encoder, place.device, name, on_gpu and compile != "off")


def _load_reference_text(checkpoint: Checkpoint, place: Place) -> Runner[Sequence[TokenIds]]:
    from deployments.model import reference

    return ReferenceRunner(reference.load_text(checkpoint, place.device, place.dtype))


def _load_reference_vision(checkpoint: Checkpoint, place: Place) -> Runner[Images]:
    from deployments.model import reference

    forward = reference.load_vision(checkpoint, place.device, place.dtype)
    return ReferenceRunner(lambda pixels: forward(np.asarray(pixels)))


def fill(
    tower: TextEncoder | VisionEncoder,
    weights: Iterator[tuple[str, Tensor]],
    place: Place,
    arranges: bool = False,
) -> None:
    """Give a tower built on the meta device its memory and copy every published tensor into it.

    One block after the other; with `arranges` the linear layers of a block are brought into their
    last form before the next block is read, so that two forms of one block at most are in memory.
    """
    tower.requires_grad_(False).eval()
    blocks = tower.blocks_by_name()
    within = {module for block in blocks.values() for module in block.modules()}
    _allocate([module for module in tower.modules() if module not in within], place, place.dtype)
    # An int8 weight is made from the exact one.
    dtype = torch.float32 if arranges and place.int8 else place.dtype
    views = tower.published_tensors()
    for prefix, tensors in groupby(weights, key=lambda named: _block_of(named[0])):
        if prefix:
            block = blocks.pop(prefix)
            _allocate(block.modules(), place, dtype)
            views |= {prefix + name: x for name, x in block.published_tensors().items()}
        for name, tensor in tensors:
            views.pop(name).copy_(tensor)
        if prefix and arranges:
            arrange(block, place.int8)
            block.to(place.dtype)
            trim()
    if views or blocks:
        raise AssertionError(f"tensors without a published source: {[*views, *blocks]}")


def _block_of(name: str) -> str:
    """Return what the names of a tensor's block begin with; nothing for one of no block."""
    found = BLOCK.match(name)
    return found.group() if found else ""


def _allocate(modules: Iterable[nn.Module], place: Place, dtype: torch.dtype) -> None:
    """Move modules from the meta device, all values zero."""
    for module in modules:
        for name, parameter in module.named_parameters(recurse=False):
            # What no published tensor fills stays zero: the k part of a bias, the padding.
            zeros = torch.zeros(parameter.shape, dtype=dtype, device=place.device)
            module.register_parameter(name, nn.Parameter(zeros, requires_grad=False))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"device is {name!r}; choose 'auto', 'cpu' or 'cuda'") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"device is {name!r}, but torch sees no GPU here")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        # Older GPUs have no bfloat16 of their own, and the compiler refuses it there.
        has_bfloat16 = torch.cuda.get_device_capability(device) >= kernels.AMPERE
        return torch.bfloat16 if has_bfloat16 else torch.float16
    if name not in DTYPES:
        raise OptionError(f"dtype is {name!r}; choose 'auto' or one of {', '.join(DTYPES)}, int8")
    return DTYPES[name]
