"""Reads a checkpoint strictly and streams its tensors, with the adapter merged in float32.

Every published name is required and no other is allowed, whichever tower is loaded. One tensor at
a time is in memory beside the model: the file is reopened for each, so that pages of the mapping
do not pile up to a second copy of the weights. Only the word embedding may stay mapped: replace a
weights file that is in use by renaming another over it, never write into it.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deployments.model.architecture import Architecture, TextArchitecture, VisionArchitecture
from deployments.model.errors import CheckpointError
from deployments.model.towers.embedding import AdaptedRows
from deployments.model.weights.source import WEIGHTS, find

TEXT_PREFIX = "text_model.transformer.roberta."
VISION_PREFIX = "vision_model."
LOGIT_SCALE = "logit_scale"
FLOATS = ("F16", "BF16", "F32")
WORDS = "embeddings.word_embeddings"
TYPES = "embeddings.token_type_embeddings"
EMBEDDINGS = (WORDS, TYPES)

Shapes = dict[str, tuple[int, ...]]


class Checkpoint:
    """A checked checkpoint folder; tensors are read when asked for.

    Raises:
        CheckpointError: a file is missing, or a tensor is missing, unexpected, mis-shaped or of an
            unusable dtype.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.architecture = Architecture.read(folder)
        self._weights = folder / WEIGHTS
        _check(self._weights, expected_shapes(self.architecture))

    @classmethod
    def open(cls, source: str, revision: str | None = None) -> "Checkpoint":
        """Find a source (see `deployments.model.weights.source.find`) and check it."""
        return cls(find(source, revision))

    def sha256(self) -> str:
        """Return the hexadecimal SHA-256 of the weights file."""
        with self._weights.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def logit_scale(self) -> float:
        """Return the trained log temperature."""
        return float(self._read(LOGIT_SCALE))

    def text_weights(self, words: bool = True) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, float32 tensor) of the text tower, layer by layer, with or without words.

        The adapter is merged, the prefix stripped.
        """
        arch = self.architecture.text
        merged = {f"{module}.weight": module for module in adapted_modules(arch)}
        if not words:
            del merged[f"{WORDS}.weight"]
        for name in sorted([*merged, *plain_text_shapes(arch)], key=_layer):
            if name in merged:
                yield name, self._merged(merged[name], arch.lora_scale)
            else:
                yield name, self._read(TEXT_PREFIX + name)

    def words(self) -> AdaptedRows:
        """Return the word embedding, its table mapped from the file."""
        prefix = f"{TEXT_PREFIX}{WORDS}.parametrizations.weight"
        with safe_open(self._weights, framework="pt") as file:
            table = file.get_tensor(f"{prefix}.original")
        tall, wide = (self._read(f"{prefix}.0.lora_{part}")[0] for part in "AB")
        return AdaptedRows(table, tall, wide, self.architecture.text.lora_scale)

    def vision_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, float32 tensor) of the vision tower, prefix stripped."""
        for name in vision_shapes(self.architecture.vision):
            yield name, self._read(VISION_PREFIX + name)

    def _read(self, name: str) -> Tensor:
        with safe_open(self._weights, framework="pt") as file:
            # clone: float32 tensors would otherwise keep pointing into the mapping
            tensor: Tensor = file.get_tensor(name).to(torch.float32, copy=True)
        return tensor

    def _merged(self, module: str, scale: float) -> Tensor:
        """Base weight plus the adapter's product, computed in float32 without a second copy."""
        prefix = f"{TEXT_PREFIX}{module}.parametrizations.weight"
        weight = self._read(f"{prefix}.original")
        a, b = self._read(f"{prefix}.0.lora_A")[0], self._read(f"{prefix}.0.lora_B")[0]
        # An embedding's A is the tall factor, a linear layer's B is.
        left, right = (a, b) if module in EMBEDDINGS else (b, a)
        return weight.addmm_(left, right, alpha=scale)


def _layer(name: str) -> int:
    """Return which layer a tensor of the text tower belongs to; -1 for none."""
    return int(name.split(".")[2]) if name.startswith("encoder.") else -1


def adapted_modules(arch: TextArchitecture) -> dict[str, tuple[int, int]]:
    """Return the modules that carry an adapter, with the shape of their weight."""
    hidden, inner = arch.hidden_size, arch.intermediate_size
    modules = dict(
        zip(EMBEDDINGS, ((arch.vocab_size, hidden), (arch.type_vocab_size, hidden)), strict=True)
    )
    for layer in range(arch.num_hidden_layers):
        prefix = f"encoder.layers.{layer}"
        modules[f"{prefix}.mixer.Wqkv"] = (3 * hidden, hidden)
        modules[f"{prefix}.mixer.out_proj"] = (hidden, hidden)
        modules[f"{prefix}.mlp.fc1"] = (inner, hidden)
        modules[f"{prefix}.mlp.fc2"] = (hidden, inner)
    return modules


def plain_text_shapes(arch: TextArchitecture) -> Shapes:
    """Return the text tensors without an adapter: biases and layer norms."""
    hidden, inner = arch.hidden_size, arch.intermediate_size
    shapes: Shapes = {"emb_ln.weight": (hidden,), "emb_ln.bias": (hidden,)}
    for layer in range(arch.num_hidden_layers):
        prefix = f"encoder.layers.{layer}"
        shapes[f"{prefix}.mixer.Wqkv.bias"] = (3 * hidden,)
        shapes[f"{prefix}.mixer.out_proj.bias"] = (hidden,)
        shapes[f"{prefix}.mlp.fc1.bias"] = (inner,)
        shapes[f"{prefix}.mlp.fc2.bias"] = (hidden,)
        for norm in ("norm1", "norm2"):
            shapes |= {f"{prefix}.{norm}.{part}": (hidden,) for part in ("weight", "bias")}
    return shapes


def vision_shapes(arch: VisionArchitecture) -> Shapes:
    """Return the tensors of the vision tower."""
    width, inner = arch.width, arch.mlp_width
    shapes: Shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, arch.num_tokens, width),
        "patch_embed.proj.weight": (width, 3, arch.patch_size, arch.patch_size),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    linears = {"attn.proj": (width, width), "mlp.w1": (inner, width), "mlp.w2": (inner, width)}
    linears["mlp.w3"] = (width, inner)
    norms = {"norm1": width, "norm2": width, "attn.inner_attn_ln": width, "mlp.ffn_ln": inner}
    for block in range(arch.layers):
        prefix = f"blocks.{block}"
        shapes |= {f"{prefix}.attn.{x}_proj.weight": (width, width) for x in "qkv"}
        shapes |= {f"{prefix}.attn.{x}_bias": (width,) for x in "qv"}
        for name, shape in linears.items():
            shapes |= {f"{prefix}.{name}.weight": shape, f"{prefix}.{name}.bias": shape[:1]}
        for name, size in norms.items():
            shapes |= {f"{prefix}.{name}.{part}": (size,) for part in ("weight", "bias")}
    return shapes


def expected_shapes(arch: Architecture) -> Shapes:
    """Return every tensor of the published layout at the sizes of a checkpoint."""
    rank = arch.text.lora_rank
    shapes: Shapes = {LOGIT_SCALE: ()}
    for module, (rows, columns) in adapted_modules(arch.text).items():
        prefix = f"{TEXT_PREFIX}{module}.parametrizations.weight"
        tall, wide = ("A", "B") if module in EMBEDDINGS else ("B", "A")
        shapes[f"{prefix}.original"] = (rows, columns)
        shapes[f"{prefix}.0.lora_{tall}"] = (1, rows, rank)
        shapes[f"{prefix}.0.lora_{wide}"] = (1, rank, columns)
    shapes |= {TEXT_PREFIX + name: shape for name, shape in plain_text_shapes(arch.text).items()}
    shapes |= {VISION_PREFIX + name: shape for name, shape in vision_shapes(arch.vision).items()}
    return shapes


def _check(path: Path, expected: Shapes) -> None:
    """Raise unless the file holds exactly the expected tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no dict
            found = {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    faults = [f"missing {name}" for name in sorted(expected.keys() - found.keys())]
    faults += [f"unexpected {name}" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        shape, dtype = found[name]
        if shape != expected[name]:
            faults.append(f"{name} has shape {shape}, the configuration says {expected[name]}")
        elif dtype not in FLOATS:
            faults.append(f"{name} has dtype {dtype}, not one of {', '.join(FLOATS)}")
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(f"{path}: {'; '.join(faults[:5])}{more}")
