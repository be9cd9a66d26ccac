"""The sizes of a checkpoint, read from its configuration files.

The published `config.json` leaves most text sizes to the nested jina-embeddings-v3 configuration;
they are the defaults here, overridden by `text_config.hf_model_config_kwargs`
(the model card and its remote configuration).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.model.errors import CheckpointError

QUERY_TASK = "retrieval.query"


@dataclass(frozen=True)
class TextArchitecture:
    """Sizes of the text tower; defaults are those of jina-embeddings-v3."""

    vocab_size: int = 250002
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    layer_norm_eps: float = 1e-5
    type_vocab_size: int = 1
    max_position_embeddings: int = 8194
    pad_token_id: int = 1
    rotary_emb_base: float = 20000.0
    lora_rank: int = 4
    lora_alpha: float = 4.0
    query_prefix: str = "Represent the query for retrieving evidence documents: "

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def lora_scale(self) -> float:
        """Factor on the adapter product (alpha / rank)."""
        return self.lora_alpha / self.lora_rank

    @property
    def max_tokens(self) -> int:
        """Longest text in tokens, specials included: XLM-R keeps two of its positions unused."""
        return self.max_position_embeddings - 2


@dataclass(frozen=True)
class VisionArchitecture:
    """Sizes of the vision tower (EVA02, EVA-CLIP flavour) and of its input images."""

    width: int = 1024
    layers: int = 24
    head_width: int = 64
    mlp_ratio: float = 2.6667
    image_size: int = 512
    patch_size: int = 14
    pretrained_grid: int = 16
    layer_norm_eps: float = 1e-6
    rope_base: float = 10000.0
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def num_heads(self) -> int:
        """Number of attention heads."""
        return self.width // self.head_width

    @property
    def grid(self) -> int:
        """Patches along one side; pixels beyond the last whole patch are never seen."""
        return self.image_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Patches and the CLS token."""
        return self.grid**2 + 1

    @property
    def mlp_width(self) -> int:
        """Width of the SwiGLU, truncated as the published code does it."""
        return int(self.width * self.mlp_ratio)


@dataclass(frozen=True)
class Architecture:
    """Both towers, and what they share."""

    text: TextArchitecture
    vision: VisionArchitecture
    matryoshka_dimensions: tuple[int, ...]

    @property
    def width(self) -> int:
        """Width of a full embedding."""
        return self.text.hidden_size

    @classmethod
    def read(cls, folder: Path) -> "Architecture":
        """Read `config.json` and `preprocessor_config.json` of a checkpoint folder.

        Raises:
            CheckpointError: a file is missing or not JSON, or asks for something that is not built.
        """
        config = _read_json(folder / "config.json")
        pixels = _read_json(folder / "preprocessor_config.json")
        _refuse_unknown(config, pixels)
        return cls(
            text=_text(config.get("text_config", {})),
            vision=_vision(config.get("vision_config", {}), pixels),
            matryoshka_dimensions=tuple(config.get("matryoshka_dimensions") or ()),
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.name} is missing from the checkpoint {path.parent}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(data).__name__}")
    return data


def _text(config: dict[str, Any]) -> TextArchitecture:
    nested = config.get("hf_model_config_kwargs", {})
    sizes = {name: nested[name] for name in TextArchitecture.__dataclass_fields__ if name in nested}
    prefix = nested.get("task_instructions", {}).get(QUERY_TASK)
    if prefix is not None:
        sizes["query_prefix"] = prefix
    return TextArchitecture(**sizes)


def _vision(config: dict[str, Any], pixels: dict[str, Any]) -> VisionArchitecture:
    same = ("width", "layers", "head_width", "mlp_ratio", "image_size", "patch_size")
    sizes = {name: config[name] for name in same if name in config}
    if "pt_hw_seq_len" in config:
        sizes["pretrained_grid"] = config["pt_hw_seq_len"]
    for name in ("mean", "std"):
        if name in pixels:
            sizes[name] = tuple(pixels[name])
    return VisionArchitecture(**sizes)


def _refuse_unknown(config: dict[str, Any], pixels: dict[str, Any]) -> None:
    """Raise for a trait of the wider model family that these towers do not have."""
    text, vision = config.get("text_config", {}), config.get("vision_config", {})
    nested = text.get("hf_model_config_kwargs", {})
    expected: list[tuple[str, Any, Any]] = [
        ("model_type", config.get("model_type"), "jina_clip"),
        ("add_projections", config.get("add_projections", False), False),
        ("text_config.pooler_type", text.get("pooler_type"), "mean_pooler"),
        ("text_config.proj_type", text.get("proj_type"), None),
        ("text_config.default_lora_task", text.get("default_lora_task"), QUERY_TASK),
        ("text_config.default_instruction_task", text.get("default_instruction_task"), None),
        ("lora_adaptations", nested.get("lora_adaptations"), [QUERY_TASK]),
        ("hidden_act", nested.get("hidden_act", "gelu"), "gelu"),
        ("vision_config.proj_type", vision.get("proj_type"), None),
        ("vision_config.subln", vision.get("subln", True), True),
        ("vision_config.naive_swiglu", vision.get("naive_swiglu", True), True),
        ("vision_config.rope_embeddings", vision.get("rope_embeddings", True), True),
        ("vision_config.intp_freq", vision.get("intp_freq", True), True),
        ("vision_config.qkv_bias", vision.get("qkv_bias", True), True),
        ("vision_config.post_norm", vision.get("post_norm", False), False),
        ("vision_config.ls_init_value", vision.get("ls_init_value"), None),
        ("preprocessor size", pixels.get("size"), vision.get("image_size")),
        ("preprocessor resize_mode", pixels.get("resize_mode", "shortest"), "shortest"),
        ("preprocessor interpolation", pixels.get("interpolation", "bicubic"), "bicubic"),
    ]
    for name, found, wanted in expected:
        if found != wanted:
            raise CheckpointError(
                f"config: {name} is {found!r}; this server builds only {wanted!r}"
            )
