"""The same encoders from third-party code: transformers' text tower, timm's vision tower.

The oracle of the tests and the baseline of the benchmarks. Texts run padded, as people run them
today; nothing else of the product depends on this module or on the two libraries.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deployments.model.architecture import TextArchitecture, VisionArchitecture
from deployments.model.output import Rows
from deployments.model.pictures.image import Pixels
from deployments.model.weights.checkpoint import Checkpoint

TextForward = Callable[[Sequence[NDArray[np.int32]]], Rows]
ImageForward = Callable[[Pixels], Rows]

INSTALL = "implementation='reference' needs the extra: pip install 'jina-clip-serve[reference]'"

TEXT_NAMES = {
    "emb_ln": "embeddings.LayerNorm",
    "mixer.out_proj": "self_attn.o_proj",
    "norm1": "post_attention_layernorm",
    "norm2": "post_mlp_layernorm",
}
VISION_NAMES = {
    "attn.inner_attn_ln": "attn.norm",
    "attn.q_bias": "attn.q_proj.bias",
    "attn.v_bias": "attn.v_proj.bias",
    "mlp.w1": "mlp.fc1_g",
    "mlp.w2": "mlp.fc1_x",
    "mlp.w3": "mlp.fc2",
    "mlp.ffn_ln": "mlp.norm",
}


def load_text(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> TextForward:
    """Return transformers' text tower as a function of token ids.

    Raises:
        ImportError: transformers is not installed.
    """
    arch = checkpoint.architecture.text
    model = text_module(checkpoint, device, dtype)

    @torch.inference_mode()
    def forward(token_ids: Sequence[NDArray[np.int32]]) -> Rows:
        rows: Rows = model(padded(token_ids, arch).to(device)).cpu().numpy()
        return rows

    return forward


def text_module(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Build transformers' JinaEmbeddingsV3Model with the adapter merged into its weights, and pool.

    It turns padded token ids, int64 [n, longest], into float32 [n, width].

    Raises:
        ImportError: transformers is not installed.
    """
    try:
        from transformers import JinaEmbeddingsV3Config, JinaEmbeddingsV3Model
    except ImportError as error:
        raise ImportError(INSTALL) from error
    arch = checkpoint.architecture.text
    config = JinaEmbeddingsV3Config(
        vocab_size=arch.vocab_size,
        hidden_size=arch.hidden_size,
        num_hidden_layers=arch.num_hidden_layers,
        num_attention_heads=arch.num_attention_heads,
        intermediate_size=arch.intermediate_size,
        max_position_embeddings=arch.max_position_embeddings,
        layer_norm_eps=arch.layer_norm_eps,
        type_vocab_size=arch.type_vocab_size,
        pad_token_id=arch.pad_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": arch.rotary_emb_base},
    )
    config._attn_implementation = "sdpa"
    model = JinaEmbeddingsV3Model(config, add_pooling_layer=False)
    _assign(model, _renamed_text(checkpoint.text_weights()), device, dtype)
    return MeanPooled(model, arch.pad_token_id).eval()


class MeanPooled(nn.Module):
    """A text tower with the average of its tokens that are no pads."""

    def __init__(self, model: nn.Module, pad_token_id: int) -> None:
        super().__init__()
        self.model = model
        self.pad_token_id = pad_token_id

    def forward(self, ids: Tensor) -> Tensor:
        """Return float32 [n, width] for int64 [n, longest]."""
        mask = ids != self.pad_token_id
        hidden = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
        weights = mask[..., None].float()
        pooled: Tensor = (hidden * weights).sum(1) / weights.sum(1)
        return pooled


def load_vision(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> ImageForward:
    """Return timm's vision tower as a function of pixels.

    Raises:
        ImportError: timm is not installed.
    """
    arch = checkpoint.architecture.vision
    model = vision_module(checkpoint, device, dtype)

    @torch.inference_mode()
    def forward(pixels: Pixels) -> Rows:
        rows: Rows = model(standardised(pixels, arch).to(device, dtype)).float().cpu().numpy()
        return rows

    return forward


def vision_module(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Build timm's Eva as EVA02-L/14 of EVA-CLIP without a head; takes what `standardised` gives.

    Raises:
        ImportError: timm is not installed.
    """
    try:
        from timm.models.eva import Eva
    except ImportError as error:
        raise ImportError(INSTALL) from error
    arch = checkpoint.architecture.vision
    model = Eva(
        img_size=arch.image_size,
        patch_size=arch.patch_size,
        num_classes=0,
        global_pool="token",
        embed_dim=arch.width,
        depth=arch.layers,
        num_heads=arch.num_heads,
        qkv_fused=False,
        mlp_ratio=arch.mlp_ratio,
        swiglu_mlp=True,
        scale_mlp=True,
        scale_attn_inner=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(arch.pretrained_grid, arch.pretrained_grid),
    )
    _assign(model, _renamed_vision(checkpoint.vision_weights()), device, dtype)
    built: nn.Module = model
    return built


def padded(token_ids: Sequence[NDArray[np.int32]], arch: TextArchitecture) -> Tensor:
    """Pad texts on the right to the longest; int64 [n, longest]."""
    longest = max(len(ids) for ids in token_ids)
    rows = np.full((len(token_ids), longest), arch.pad_token_id, dtype=np.int64)
    for row, ids in zip(rows, token_ids, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(rows)


def standardised(pixels: Pixels, arch: VisionArchitecture) -> Tensor:
    """Turn uint8 [n, size, size, 3] into the float32 [n, 3, size, size] of the model."""
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(x)[:, None, None] for x in (arch.mean, arch.std))
    return (scaled - mean) / std


def _renamed_text(weights: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for published, tensor in weights:
        name = published.removeprefix("encoder.")
        for ours, theirs in TEXT_NAMES.items():
            name = name.replace(ours, theirs)
        if "mixer.Wqkv" in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                yield name.replace("mixer.Wqkv", f"self_attn.{letter}_proj"), part
        else:
            yield name, tensor


def _renamed_vision(weights: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for published, tensor in weights:
        name = published
        for ours, theirs in VISION_NAMES.items():
            name = name.replace(ours, theirs)
        yield name, tensor


# Any: third-party models without annotations.
def _assign(
    model: Any,  # noqa: ANN401
    weights: Iterator[tuple[str, Tensor]],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Load every tensor strictly and move the model to its device, ready for inference."""
    left = dict(model.named_parameters())
    for name, tensor in weights:
        left.pop(name).data = tensor.to(dtype, copy=True)
    if left:
        raise AssertionError(f"tensors without a published source: {sorted(left)}")
    model.to(device).eval()
