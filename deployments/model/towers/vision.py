"""The vision tower: EVA02 with 2-D rotary positions, sub-LayerNorms and SwiGLU; CLS pooling.

Projections that the checkpoint stores apart (q, k, v; the two halves of the SwiGLU) are one matrix
here. Shapes: B images, S tokens (CLS and patches), C width, H heads, D head width,
X the two of q and k.
"""

from collections.abc import Callable, Iterable
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from deployments.model.architecture import VisionArchitecture
from deployments.model.runtime.compilation import Compiled
from deployments.model.towers.attention import DenseAttention, dense_sdpa
from deployments.model.towers.linear import Linear

# cuBLAS falls to a third of its speed on a width that is no multiple of 8; of 256, it is best.
CUDA_MLP_MULTIPLE = 256


def rotary_tables(arch: VisionArchitecture, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return float32 cosines and sines [S, 1, D/2], one angle per adjacent pair of a head.

    The first half of the pairs turns by the row, the second by the column. Positions of the grid
    are rescaled to the one that the tower was pretrained on (EVA-02, `intp_freq`). CLS is not
    rotated: its angle is 0.
    """
    pairs = arch.head_width // 4
    frequencies = arch.rope_base ** (-torch.arange(pairs, dtype=torch.float32) / pairs)
    places = torch.arange(arch.grid, dtype=torch.float32) / arch.grid * arch.pretrained_grid
    angles = places[:, None] * frequencies
    rows = repeat(angles, "row pair -> (row column) pair", column=arch.grid)
    columns = repeat(angles, "column pair -> (row column) pair", row=arch.grid)
    patches = torch.cat((rows, columns), dim=-1)
    with_cls = torch.cat((torch.zeros(1, 2 * pairs), patches))[:, None]
    return with_cls.cos().to(device), with_cls.sin().to(device)


def rotate_pairs(x_BSXHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate adjacent pairs of each head, in float32, back in x's dtype."""
    pairs = x_BSXHD.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # the compiler fuses this form, and no complex numbers
        even, odd = pairs.unbind(-1)
        rotated = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    else:
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    return rotated.flatten(-2).to(x_BSXHD.dtype)


class Attention(nn.Module):
    """Self-attention with a LayerNorm between the heads and the output projection."""

    def __init__(self, arch: VisionArchitecture) -> None:
        super().__init__()
        self.num_heads = arch.num_heads
        self.qkv = Linear(arch.width, 3 * arch.width)
        self.inner_attn_ln = nn.LayerNorm(arch.width, arch.layer_norm_eps)
        self.proj = Linear(arch.width, arch.width)

    def forward(
        self, x_BSC: Tensor, rotary: tuple[Tensor, Tensor], attention: DenseAttention
    ) -> Tensor:
        """Attend within each image; [B, S, C] in and out."""
        # Not by name, as elsewhere: einops reads the names at each call, in every block.
        qkv = self.qkv(x_BSC).unflatten(-1, (3, self.num_heads, -1))
        q, k = rotate_pairs(qkv[:, :, :2], *rotary).unbind(2)
        attended = attention(q, k, qkv[:, :, 2])
        out: Tensor = self.proj(self.inner_attn_ln(attended.flatten(2)))
        return out

    def published_tensors(self) -> dict[str, Tensor]:
        """Return the fused projection's parts by their published names; k has no bias."""
        q, k, v = self.qkv.weight.chunk(3)
        q_bias, _, v_bias = self.qkv.bias.chunk(3)
        parts = {"q_proj.weight": q, "k_proj.weight": k, "v_proj.weight": v}
        return parts | {"q_bias": q_bias, "v_bias": v_bias}


class PaddedLayerNorm(nn.LayerNorm):
    """A LayerNorm whose input is zero from `width` on; its statistics are those of the rest."""

    def __init__(self, width: int, padded: int, eps: float) -> None:
        super().__init__(padded, eps)
        self.width = width
        self.padding = padded - width

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension; the padding gets what its weight and bias, zeros, say."""
        if not self.padding:
            return super().forward(x)
        exact = x.float()
        # Both sums in one pass; the padding's zeros add nothing to either.
        mean = exact.sum(-1, keepdim=True) / self.width
        variance = exact.square().sum(-1, keepdim=True) / self.width - mean.square()
        normal = (exact - mean) * (variance + self.eps).rsqrt()
        return (normal * self.weight + self.bias).to(x.dtype)


class SwiGlu(nn.Module):
    """`w3(ffn_ln(silu(w1 x) * w2 x))`, with w1 and w2 in one matrix, zero-padded to a multiple."""

    def __init__(self, arch: VisionArchitecture, multiple: int = 1) -> None:
        super().__init__()
        self.width = arch.mlp_width
        padded = -(-arch.mlp_width // multiple) * multiple
        self.w12 = Linear(arch.width, 2 * padded)
        self.ffn_ln = PaddedLayerNorm(arch.mlp_width, padded, arch.layer_norm_eps)
        # A row of its input has single values far above the others, which set its scale in int8:
        # with this layer in bfloat16 images keep a cosine of 0.9999 to float32 in place of 0.9995.
        self.w3 = Linear(padded, arch.width, has_int8=False)

    def forward(self, x_BSC: Tensor) -> Tensor:
        """Transform each token; [B, S, C] in and out."""
        gate, up = self.w12(x_BSC).chunk(2, dim=-1)
        if torch.compiler.is_compiling():  # in place, on half a matrix, it writes all of it again
            inner = F.silu(gate) * up
        else:
            inner = F.silu(gate, inplace=True).mul_(up)
        out: Tensor = self.w3(self.ffn_ln(inner))
        return out

    def published_tensors(self) -> dict[str, Tensor]:
        """Return the parts that hold published values, by their published names."""
        parts = {"w3.weight": self.w3.weight[:, : self.width], "w3.bias": self.w3.bias}
        for part in ("weight", "bias"):
            gate, up = getattr(self.w12, part).chunk(2)
            parts[f"w1.{part}"], parts[f"w2.{part}"] = gate[: self.width], up[: self.width]
            parts[f"ffn_ln.{part}"] = getattr(self.ffn_ln, part)[: self.width]
        return parts


class Block(nn.Module):
    """One pre-norm block."""

    def __init__(self, arch: VisionArchitecture, mlp_multiple: int = 1) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(arch.width, arch.layer_norm_eps)
        self.attn = Attention(arch)
        self.norm2 = nn.LayerNorm(arch.width, arch.layer_norm_eps)
        self.mlp = SwiGlu(arch, mlp_multiple)

    def forward(
        self, x_BSC: Tensor, rotary: tuple[Tensor, Tensor], attention: DenseAttention
    ) -> Tensor:
        """Return [B, S, C] for [B, S, C]."""
        x_BSC = self.attn(self.norm1(x_BSC), rotary, attention).add_(x_BSC)
        out: Tensor = self.mlp(self.norm2(x_BSC)).add_(x_BSC)
        return out

    def published_tensors(self) -> dict[str, Tensor]:
        """Return where each published tensor goes, by its name within the block."""
        views: dict[str, Tensor] = dict(self.named_parameters())
        for place, module in (("attn", self.attn), ("mlp", self.mlp)):
            views |= {f"{place}.{part}": x for part, x in module.published_tensors().items()}
        fused = (".qkv.", ".w12.")
        return {name: x for name, x in views.items() if not any(part in name for part in fused)}


class VisionEncoder(nn.Module):
    """Pixels to one vector per image; `mlp_multiple` pads the SwiGLU without changing it."""

    def __init__(
        self,
        arch: VisionArchitecture,
        attention: DenseAttention = dense_sdpa,
        mlp_multiple: int = 1,
    ) -> None:
        super().__init__()
        self.arch = arch
        self.attention = attention
        size = arch.patch_size
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, arch.width, size, stride=size)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, arch.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, arch.num_tokens, arch.width))
        self.blocks = nn.ModuleList(Block(arch, mlp_multiple) for _ in range(arch.layers))
        self.norm = nn.LayerNorm(arch.width, arch.layer_norm_eps)
        self._run_block: Callable[..., Tensor] = Block.forward
        self._run_embed: Callable[..., Tensor] = VisionEncoder.embed
        self._constants: tuple[Tensor, ...] = ()

    def blocks_by_name(self) -> dict[str, Block]:
        """Return the blocks, by what the names of their published tensors begin with."""
        blocks = cast("Iterable[Block]", self.blocks)
        return {f"blocks.{index}.": block for index, block in enumerate(blocks)}

    def published_tensors(self) -> dict[str, Tensor]:
        """Return where each published tensor outside of the blocks goes, by its name."""
        named = self.named_parameters()
        return {name: tensor for name, tensor in named if not name.startswith("blocks.")}

    def compile_blocks(self, required: bool = True) -> None:
        """Compile at the next forward: one compilation for all blocks."""
        self._run_block = Compiled(Block.forward, required)
        self._run_embed = Compiled(VisionEncoder.embed, required)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return float32 [B, C], un-normalised, for uint8 pixels [B, size, size, 3]."""
        if not self._constants:
            mean, std = torch.tensor(self.arch.mean), torch.tensor(self.arch.std)
            standard = (x.to(pixels.device) for x in (1 / (255 * std), -mean / std))
            cos, sin = rotary_tables(self.arch, pixels.device)
            self._constants = (*standard, cos[:, None], sin[:, None])
        scale, shift, *rotary = self._constants
        x_BSC = self._run_embed(self, pixels, scale, shift)
        for block in self.blocks:
            x_BSC = self._run_block(block, x_BSC, tuple(rotary), self.attention)
        out: Tensor = self.norm(x_BSC[:, 0])
        return out.float()

    def embed(self, pixels: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Standardise the pixels, cut them into patches, add CLS and positions; [B, S, C].

        A convolution with a stride of its own size is a matrix product over patches. Its inner
        dimension, 3 * 14 * 14, is zero-padded to a multiple of 8 for the tensor cores.
        """
        grid, size = self.arch.grid, self.arch.patch_size
        weight, bias = (self.get_parameter(f"patch_embed.proj.{x}") for x in ("weight", "bias"))
        seen = grid * size
        standard = torch.addcmul(shift, pixels[:, :seen, :seen].float(), scale).to(weight.dtype)
        rows_BSP = rearrange(
            standard, "b (row y) (column x) rgb -> b (row column) (y x rgb)", y=size, x=size
        )
        matrix_CP = rearrange(weight, "c rgb y x -> c (y x rgb)")
        padding = (0, -matrix_CP.shape[1] % 8)
        x_BSC = F.linear(F.pad(rows_BSP, padding), F.pad(matrix_CP, padding), bias)
        cls = self.cls_token.expand(len(pixels), -1, -1)
        return torch.cat((cls, x_BSC), dim=1) + self.pos_embed
