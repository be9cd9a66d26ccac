"""The text tower: XLM-RoBERTa with rotary positions, post-norm, mean pooling.

Texts run packed one after the other, without padding. Module names are those of the checkpoint
once the adapter is merged. Shapes: T tokens of all texts, N texts, C hidden, H heads, D head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from deployments.model.architecture import TextArchitecture
from deployments.model.attention import PackedAttention, Segments, packed_sdpa


@dataclass(frozen=True)
class PackedTexts:
    """Texts one after the other, longest first.

    Attributes:
        token_ids: int64 [T].
        positions: int64 [T], place of each token in its own text.
        segments: where each text lies.
        order: input index of each packed text.
    """

    token_ids: Tensor
    positions: Tensor
    segments: Segments
    order: NDArray[np.intp]


def pack(texts: Sequence[NDArray[np.int32]], pad_token_id: int, device: torch.device) -> PackedTexts:
    """Pack texts for one forward; pads are left out, but the others keep their positions.

    A pad inside a text (a literal `<pad>`) is neither attended to nor pooled in the published
    model, which derives its mask from the ids; leaving it out is the same.

    Args:
        texts: int32 token ids, specials included, at least one that is not a pad in each.
        pad_token_id: the id to leave out.
        device: where the tensors go.
    """
    kept = [np.flatnonzero(ids != pad_token_id) for ids in texts]
    lengths = np.array([len(places) for places in kept])
    order = np.argsort(-lengths, kind="stable")
    lengths = lengths[order]
    bounds = np.concatenate(([0], np.cumsum(lengths)))
    token_ids = np.concatenate([texts[i][kept[i]] for i in order]).astype(np.int64)
    positions = np.concatenate([kept[i] for i in order])
    return PackedTexts(
        token_ids=torch.from_numpy(token_ids).to(device),
        positions=torch.from_numpy(positions).to(device),
        segments=Segments(
            lengths=tuple(lengths.tolist()),
            cu_seqlens=torch.from_numpy(bounds.astype(np.int32)).to(device),
            max_length=int(lengths[0]),
        ),
        order=order,
    )


def rotary_tables(
    positions: Tensor, head_dim: int, base: float
) -> tuple[Tensor, Tensor]:
    """Return float32 cosines and sines [T, 1, D/2] of angle position * base^(-2i/D) (RoFormer)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    inverse_frequencies = 1.0 / base ** (exponents / head_dim)
    angles = positions.to(torch.float32)[:, None, None] * inverse_frequencies
    return angles.cos(), angles.sin()


def rotate_halves(x_THD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first half of each head against the second, in float32, back in x's dtype."""
    first, second = x_THD.float().chunk(2, dim=-1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated.to(x_THD.dtype)


class Mixer(nn.Module):
    """Self-attention with a fused q, k, v projection."""

    def __init__(self, arch: TextArchitecture) -> None:
        super().__init__()
        self.num_heads = arch.num_attention_heads
        self.Wqkv = nn.Linear(arch.hidden_size, 3 * arch.hidden_size)
        self.out_proj = nn.Linear(arch.hidden_size, arch.hidden_size)

    def forward(
        self,
        x_TC: Tensor,
        rotary: tuple[Tensor, Tensor],
        segments: Segments,
        attention: PackedAttention,
    ) -> Tensor:
        """Attend within each text; [T, C] in and out."""
        q, k, v = self.Wqkv(x_TC).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        q, k = rotate_halves(q, *rotary), rotate_halves(k, *rotary)
        out: Tensor = self.out_proj(attention(q, k, v, segments).flatten(1))
        return out


class Mlp(nn.Module):
    """Two linear layers around an exact (erf) GELU."""

    def __init__(self, arch: TextArchitecture) -> None:
        super().__init__()
        self.fc1 = nn.Linear(arch.hidden_size, arch.intermediate_size)
        self.fc2 = nn.Linear(arch.intermediate_size, arch.hidden_size)

    def forward(self, x_TC: Tensor) -> Tensor:
        """Transform each token; [T, C] in and out."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x_TC)))
        return out


class Layer(nn.Module):
    """One encoder layer; each norm follows its residual (post-norm)."""

    def __init__(self, arch: TextArchitecture) -> None:
        super().__init__()
        self.mixer = Mixer(arch)
        self.norm1 = nn.LayerNorm(arch.hidden_size, arch.layer_norm_eps)
        self.mlp = Mlp(arch)
        self.norm2 = nn.LayerNorm(arch.hidden_size, arch.layer_norm_eps)

    def forward(
        self,
        x_TC: Tensor,
        rotary: tuple[Tensor, Tensor],
        segments: Segments,
        attention: PackedAttention,
    ) -> Tensor:
        """Return [T, C] for [T, C]."""
        x_TC = self.norm1(x_TC + self.mixer(x_TC, rotary, segments, attention))
        out: Tensor = self.norm2(x_TC + self.mlp(x_TC))
        return out


class TextTower(nn.Module):
    """Token ids to one pooled vector per text."""

    def __init__(self, arch: TextArchitecture, attention: PackedAttention = packed_sdpa) -> None:
        super().__init__()
        self.arch = arch
        self.attention = attention
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(arch.vocab_size, arch.hidden_size),
                "token_type_embeddings": nn.Embedding(arch.type_vocab_size, arch.hidden_size),
            }
        )
        self.emb_ln = nn.LayerNorm(arch.hidden_size, arch.layer_norm_eps)
        layers = nn.ModuleList(Layer(arch) for _ in range(arch.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layers": layers})

    def published_tensors(self) -> dict[str, Tensor]:
        """Return where each published tensor goes, by its name without the prefix."""
        return dict(self.named_parameters())

    def forward(self, packed: PackedTexts) -> Tensor:
        """Return float32 [N, C], un-normalised, in packed order."""
        arch, segments = self.arch, packed.segments
        rotary = rotary_tables(packed.positions, arch.head_dim, arch.rotary_emb_base)
        x_TC = self.embeddings["word_embeddings"](packed.token_ids)
        # Every token has type 0.
        x_TC = self.emb_ln(x_TC + self.embeddings["token_type_embeddings"].weight[0])
        for layer in self.encoder["layers"]:
            x_TC = layer(x_TC, rotary, segments, self.attention)
        return mean_pool(x_TC, segments)


def mean_pool(x_TC: Tensor, segments: Segments) -> Tensor:
    """Average the tokens of each text, `<s>` and `</s>` included; float32 [N, C]."""
    return torch.segment_reduce(x_TC.float(), "mean", offsets=segments.cu_seqlens.long())
