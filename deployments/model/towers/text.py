"""The text tower: XLM-RoBERTa with rotary positions, post-norm, mean pooling.

Texts run packed one after the other, without padding. Module names are those of the checkpoint
once the adapter is merged. Shapes: T tokens of all texts, N texts, C hidden, H heads, D head width,
X the two of q and k.
"""

from collections.abc import Callable, Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deployments.model.architecture import TextArchitecture
from deployments.model.runtime.compilation import Compiled
from deployments.model.towers.attention import PackedAttention, Segments, packed_sdpa
from deployments.model.towers.embedding import WordEmbedding
from deployments.model.towers.linear import Linear
from deployments.model.towers.packing import PackedTexts

LONG_BAG = 512  # tokens


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
        x_TC = self.norm1(self.mixer(x_TC, rotary, segments, attention).add_(x_TC))
        out: Tensor = self.norm2(self.mlp(x_TC).add_(x_TC))
        return out

    def published_tensors(self) -> dict[str, Tensor]:
        """Return where each published tensor goes, by its name within the layer."""
        return dict(self.named_parameters())


class TextEncoder(nn.Module):
    """Token ids to one pooled vector per text; `words` replaces the word embedding."""

    def __init__(
        self,
        arch: TextArchitecture,
        attention: PackedAttention = packed_sdpa,
        words: WordEmbedding | None = None,
    ) -> None:
        super().__init__()
        self.arch = arch
        self.attention = attention
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": words or _table(arch.vocab_size, arch.hidden_size),
                "token_type_embeddings": _table(arch.type_vocab_size, arch.hidden_size),
            }
        )
        self.emb_ln = nn.LayerNorm(arch.hidden_size, arch.layer_norm_eps)
        layers = nn.ModuleList(Layer(arch) for _ in range(arch.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layers": layers})
        self._run_layer: Callable[..., Tensor] = Layer.forward
        self._tables: tuple[Tensor, Tensor] | None = None

    def blocks_by_name(self) -> dict[str, Layer]:
        """Return the layers, by what the names of their published tensors begin with."""
        layers = cast("Iterable[Layer]", self.encoder["layers"])
        return {f"encoder.layers.{index}.": layer for index, layer in enumerate(layers)}

    def published_tensors(self) -> dict[str, Tensor]:
        """Return where each published tensor outside of the layers goes, by its name."""
        named = self.named_parameters()
        return {name: tensor for name, tensor in named if not name.startswith("encoder.layers.")}

    def compile_blocks(self, required: bool = True) -> None:
        """Compile at the next forward: once for all layers and every batch."""
        self._run_layer = Compiled(Layer.forward, required)

    def forward(self, packed: PackedTexts) -> Tensor:
        """Return float32 [N, C], un-normalised, in packed order."""
        segments = packed.segments
        if self._run_layer is not Layer.forward:
            segments = segments.without_lengths()
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


def _table(rows: int, width: int) -> nn.Embedding:
    """Return an embedding to be filled."""
    # `nn.Embedding` would draw its values: on the meta device that imports torch's compiler.
    table: nn.Embedding = nn.Embedding.from_pretrained(torch.empty(rows, width))
    return table


def mean_pool(x_TC: Tensor, segments: Segments) -> Tensor:
    """Average the tokens of each text, `<s>` and `</s>` included; float32 [N, C].

    An embedding bag over the tokens' own places is one pass over them on every device. A GPU walks
    a bag's tokens one after the other, 1.2 ms for 8,192; where a text is long, a product with a
    matrix of which tokens belong to which text is faster there.
    """
    if x_TC.device.type == "cuda" and segments.max_length > LONG_BAG:
        places = torch.arange(len(x_TC), device=x_TC.device)
        starts, ends = segments.cu_seqlens[:-1, None], segments.cu_seqlens[1:, None]
        belongs_NT = (places >= starts) & (places < ends)
        sums_NC = belongs_NT.float() @ x_TC.float()
        return sums_NC / (ends - starts).clamp(min=1)
    places = torch.arange(len(x_TC), dtype=torch.int32, device=x_TC.device)
    return F.embedding_bag(
        places, x_TC.float(), segments.cu_seqlens, mode="mean", include_last_offset=True
    )
