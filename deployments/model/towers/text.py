"""The text tower: XLM-RoBERTa with rotary positions, post-norm, mean pooling.

Texts run packed one after the other, without padding. Module names are those of the checkpoint
once the adapter is merged. Shapes: T tokens of all texts, N texts, C hidden, H heads, D head width,
X the two of q and k.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from deployments.model.architecture import TextArchitecture
from deployments.model.runtime.compilation import compiled
from deployments.model.runtime.graphs import Bucket
from deployments.model.towers.attention import PackedAttention, Segments, packed_sdpa
from deployments.model.towers.linear import Linear


@dataclass(frozen=True)
class PackedTexts:
    """Texts one after the other, longest first.

    Attributes:
        buffer: int32 [N + 1 + 2T], the memory of cu_seqlens, token_ids and positions, in this
            order, so that one copy moves a batch.
        token_ids: int32 [T].
        positions: int32 [T], place of each token in its own text.
        segments: where each text lies.
        order: input index of each packed text.
    """

    buffer: Tensor
    token_ids: Tensor
    positions: Tensor
    segments: Segments
    order: NDArray[np.intp]

    def to(self, device: torch.device) -> "PackedTexts":
        """Return the batch on a device; the copy to a GPU is queued, not awaited."""
        if device.type == "cpu":
            return self
        buffer = self.buffer.pin_memory().to(device, non_blocking=True)
        return _views(buffer, len(self.segments.cu_seqlens), self.segments, self.order)


def pack(
    texts: Sequence[NDArray[np.int32]],
    pad_token_id: int,
    device: torch.device,
    shape: Bucket | None = None,
) -> PackedTexts:
    """Pack texts for one forward; pads are left out, but the others keep their positions.

    A pad inside a text (a literal `<pad>`) is neither attended to nor pooled in the published
    model, which derives its mask from the ids; leaving it out is the same.

    Args:
        texts: int32 token ids, specials included, at least one that is not a pad in each.
        pad_token_id: the id to leave out.
        device: where the tensors go.
        shape: fill the batch up to this shape with further texts, made of pads.
    """
    kept = [np.flatnonzero(ids != pad_token_id) for ids in texts]
    lengths = np.array([len(places) for places in kept])
    order = np.argsort(-lengths, kind="stable")
    lengths = lengths[order]
    longest, bounds = int(lengths[0]), np.concatenate(([0], np.cumsum(lengths)))
    if shape:
        longest, bounds = shape.longest, shape.fill(bounds)
    total, padded = int(lengths.sum()), int(bounds[-1])
    token_ids = np.full(padded, pad_token_id, dtype=np.int32)
    positions = np.zeros(padded, dtype=np.int32)
    np.concatenate([texts[i][kept[i]] for i in order], out=token_ids[:total])
    np.concatenate([kept[i] for i in order], out=positions[:total], casting="same_kind")
    parts = (bounds.astype(np.int32), token_ids, positions)
    buffer = torch.from_numpy(np.concatenate(parts))
    # The memory of a filled batch is used again for others: only the device knows their lengths.
    segments = Segments(buffer, longest, () if shape else tuple(lengths.tolist()))
    return _views(buffer, len(bounds), segments, order).to(device)


def _views(
    buffer: Tensor, num_bounds: int, segments: Segments, order: NDArray[np.intp]
) -> PackedTexts:
    """Cut a buffer into its three parts."""
    tokens = (len(buffer) - num_bounds) // 2
    cu_seqlens, token_ids, positions = buffer.split((num_bounds, tokens, tokens))
    segments = Segments(cu_seqlens, segments.max_length, segments.lengths)
    return PackedTexts(buffer, token_ids, positions, segments, order)


def rotary_tables(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Return float32 cosines and sines [T, 1, D/2] of angle position * base^(-2i/D) (RoFormer)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    inverse_frequencies = 1.0 / base ** (exponents / head_dim)
    angles = (positions.float()[:, None] * inverse_frequencies)[:, None]
    return angles.cos(), angles.sin()


def rotate_halves(x_TXHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of each head, in float32, back in x's dtype.

    The tables are those of `rotary_tables` in both halves, the sines of the first one negative.
    """
    exact = x_TXHD.float()
    first, second = exact.chunk(2, dim=-1)
    rotated = torch.cat((second, first), dim=-1).mul_(sin).addcmul_(exact, cos)
    return rotated.to(x_TXHD.dtype)


class Mixer(nn.Module):
    """Self-attention with a fused q, k, v projection."""

    def __init__(self, arch: TextArchitecture) -> None:
        super().__init__()
        self.num_heads = arch.num_attention_heads
        self.Wqkv = Linear(arch.hidden_size, 3 * arch.hidden_size)
        self.out_proj = Linear(arch.hidden_size, arch.hidden_size)

    def forward(
        self,
        x_TC: Tensor,
        rotary: tuple[Tensor, Tensor],
        segments: Segments,
        attention: PackedAttention,
    ) -> Tensor:
        """Attend within each text; [T, C] in and out."""
        qkv = self.Wqkv(x_TC).view(len(x_TC), 3, self.num_heads, -1)
        q, k = rotate_halves(qkv[:, :2], *rotary).unbind(1)
        v = qkv[:, 2]
        out: Tensor = self.out_proj(attention(q, k, v, segments).flatten(1))
        return out

    __call__ = forward  # without hooks, see Linear


class Mlp(nn.Module):
    """Two linear layers around an exact (erf) GELU."""

    def __init__(self, arch: TextArchitecture) -> None:
        super().__init__()
        self.fc1 = Linear(arch.hidden_size, arch.intermediate_size)
        self.fc2 = Linear(arch.intermediate_size, arch.hidden_size)

    def forward(self, x_TC: Tensor) -> Tensor:
        """Transform each token; [T, C] in and out."""
        out: Tensor = self.fc2(self.fc1.gelu(x_TC))
        return out

    __call__ = forward  # without hooks, see Linear


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm`, called without hooks."""

    __call__ = nn.LayerNorm.forward


class Layer(nn.Module):
    """One encoder layer; each norm follows its residual (post-norm)."""

    def __init__(self, arch: TextArchitecture) -> None:
        super().__init__()
        self.mixer = Mixer(arch)
        self.norm1 = LayerNorm(arch.hidden_size, arch.layer_norm_eps)
        self.mlp = Mlp(arch)
        self.norm2 = LayerNorm(arch.hidden_size, arch.layer_norm_eps)

    def forward(
        self,
        x_TC: Tensor,
        rotary: tuple[Tensor, Tensor],
        segments: Segments,
        attention: PackedAttention,
    ) -> Tensor:
        """Return [T, C] for [T, C]."""
        x_TC = self.norm1(self.mixer(x_TC, rotary, segments, attention).add_(x_TC))
        out: Tensor = self.norm2(self.mlp(x_TC).add_(x_TC))
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
        self.emb_ln = LayerNorm(arch.hidden_size, arch.layer_norm_eps)
        layers = nn.ModuleList(Layer(arch) for _ in range(arch.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layers": layers})
        self._run_layer: Callable[..., Tensor] = Layer.forward
        self._tables: tuple[Tensor, Tensor] | None = None

    def published_tensors(self) -> dict[str, Tensor]:
        """Return where each published tensor goes, by its name without the prefix."""
        return dict(self.named_parameters())

    def compile_blocks(self) -> None:
        """Compile at the next forward: once for all layers and every batch."""
        self._run_layer = compiled(Layer.forward)

    def forward(self, packed: PackedTexts) -> Tensor:
        """Return float32 [N, C], un-normalised, in packed order."""
        # The layers see no lengths on the host: they would be a new compilation for each batch.
        segments = packed.segments
        if self._run_layer is not Layer.forward:
            segments = Segments(segments.cu_seqlens, segments.max_length)
        cos, sin = self._rotary_tables(packed.positions.device)
        rotary = cos[packed.positions], sin[packed.positions]
        x_TC = self.embeddings["word_embeddings"](packed.token_ids)
        # Every token has type 0.
        x_TC = self.emb_ln(x_TC + self.embeddings.get_parameter("token_type_embeddings.weight")[0])
        for layer in cast("Iterable[Layer]", self.encoder["layers"]):
            x_TC = self._run_layer(layer, x_TC, rotary, segments, self.attention)
        return mean_pool(x_TC, packed.segments)

    def _rotary_tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return what `rotate_halves` takes for every position, made once; [P, 1, 1, D]."""
        if self._tables is None:
            positions = torch.arange(self.arch.max_tokens, device=device)
            cos, sin = rotary_tables(positions, self.arch.head_dim, self.arch.rotary_emb_base)
            tables = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
            self._tables = tables[0][:, None], tables[1][:, None]
        return self._tables


def mean_pool(x_TC: Tensor, segments: Segments) -> Tensor:
    """Average the tokens of each text, `<s>` and `</s>` included; float32 [N, C].

    An embedding bag over the tokens' own places is one pass over them on every device.
    """
    places = torch.arange(len(x_TC), dtype=torch.int32, device=x_TC.device)
    return F.embedding_bag(
        places, x_TC.float(), segments.cu_seqlens, mode="mean", include_last_offset=True
    )
