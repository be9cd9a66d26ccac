"""The vision tower: EVA02 with 2-D rotary positions, sub-LayerNorms and SwiGLU; CLS pooling.

Projections that the checkpoint stores apart (q, k, v; the two halves of the SwiGLU) are one matrix
here. Shapes: B pictures, S tokens (CLS and patches), C width, H heads, D head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deployments.model.architecture import VisionArchitecture
from deployments.model.attention import dense_sdpa


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
    rows = angles[:, None].expand(arch.grid, arch.grid, pairs)
    columns = angles[None].expand(arch.grid, arch.grid, pairs)
    patches = torch.cat((rows, columns), dim=-1).flatten(0, 1)
    with_cls = torch.cat((torch.zeros(1, 2 * pairs), patches))[:, None]
    return with_cls.cos().to(device), with_cls.sin().to(device)


def rotate_pairs(x_BSHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate adjacent pairs of each head, in float32, back in x's dtype."""
    even, odd = x_BSHD.float().unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return rotated.flatten(-2).to(x_BSHD.dtype)


class Attention(nn.Module):
    """Self-attention with a LayerNorm between the heads and the output projection."""

    def __init__(self, arch: VisionArchitecture) -> None:
        super().__init__()
        self.num_heads = arch.num_heads
        self.qkv = nn.Linear(arch.width, 3 * arch.width)
        self.inner_attn_ln = nn.LayerNorm(arch.width, arch.layer_norm_eps)
        self.proj = nn.Linear(arch.width, arch.width)

    def forward(self, x_BSC: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Attend within each picture; [B, S, C] in and out."""
        q, k, v = self.qkv(x_BSC).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        attended = dense_sdpa(rotate_pairs(q, *rotary), rotate_pairs(k, *rotary), v)
        out: Tensor = self.proj(self.inner_attn_ln(attended.flatten(2)))
        return out

    def published_tensors(self) -> dict[str, Tensor]:
        """Return the fused projection's parts by their published names; k has no bias."""
        q, k, v = self.qkv.weight.chunk(3)
        q_bias, _, v_bias = self.qkv.bias.chunk(3)
        parts = {"q_proj.weight": q, "k_proj.weight": k, "v_proj.weight": v}
        return parts | {"q_bias": q_bias, "v_bias": v_bias}


class SwiGlu(nn.Module):
    """`w3(ffn_ln(silu(w1 x) * w2 x))`, with w1 and w2 in one matrix."""

    def __init__(self, arch: VisionArchitecture) -> None:
        super().__init__()
        self.w12 = nn.Linear(arch.width, 2 * arch.mlp_width)
        self.ffn_ln = nn.LayerNorm(arch.mlp_width, arch.layer_norm_eps)
        self.w3 = nn.Linear(arch.mlp_width, arch.width)

    def forward(self, x_BSC: Tensor) -> Tensor:
        """Transform each token; [B, S, C] in and out."""
        gate, up = self.w12(x_BSC).chunk(2, dim=-1)
        out: Tensor = self.w3(self.ffn_ln(F.silu(gate) * up))
        return out

    def published_tensors(self) -> dict[str, Tensor]:
        """Return the fused projection's parts by their published names."""
        parts = {}
        for part in ("weight", "bias"):
            parts[f"w1.{part}"], parts[f"w2.{part}"] = getattr(self.w12, part).chunk(2)
        return parts


class Block(nn.Module):
    """One pre-norm block."""

    def __init__(self, arch: VisionArchitecture) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(arch.width, arch.layer_norm_eps)
        self.attn = Attention(arch)
        self.norm2 = nn.LayerNorm(arch.width, arch.layer_norm_eps)
        self.mlp = SwiGlu(arch)

    def forward(self, x_BSC: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Return [B, S, C] for [B, S, C]."""
        x_BSC = x_BSC + self.attn(self.norm1(x_BSC), rotary)
        out: Tensor = x_BSC + self.mlp(self.norm2(x_BSC))
        return out


class VisionTower(nn.Module):
    """Pixels to one vector per picture."""

    def __init__(self, arch: VisionArchitecture) -> None:
        super().__init__()
        self.arch = arch
        size = arch.patch_size
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, arch.width, size, stride=size)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, arch.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, arch.num_tokens, arch.width))
        self.blocks = nn.ModuleList(Block(arch) for _ in range(arch.layers))
        self.norm = nn.LayerNorm(arch.width, arch.layer_norm_eps)
        self._tables: tuple[Tensor, Tensor] | None = None

    def published_tensors(self) -> dict[str, Tensor]:
        """Return where each published tensor goes, by its name without the prefix."""
        names = dict(self.named_parameters())
        for index, block in enumerate(self.blocks):
            for place, module in (("attn", block.attn), ("mlp", block.mlp)):
                parts = module.published_tensors()
                names |= {f"blocks.{index}.{place}.{part}": view for part, view in parts.items()}
        return {name: view for name, view in names.items() if ".qkv." not in name and ".w12." not in name}

    def forward(self, pixels: Tensor) -> Tensor:
        """Return float32 [B, C], un-normalised, for uint8 pixels [B, size, size, 3]."""
        if self._tables is None:
            self._tables = rotary_tables(self.arch, pixels.device)
        x_BSC = self._embed(pixels)
        for block in self.blocks:
            x_BSC = block(x_BSC, self._tables)
        out: Tensor = self.norm(x_BSC[:, 0])
        return out.float()

    def _embed(self, pixels: Tensor) -> Tensor:
        """Scale and standardise the pixels, cut them into patches, add CLS and positions."""
        mean, std = (pixels.new_tensor(x, dtype=torch.float32) for x in (self.arch.mean, self.arch.std))
        standard = ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)
        proj = self.patch_embed["proj"]
        patches = proj(standard.to(proj.weight.dtype)).flatten(2).transpose(1, 2)
        cls = self.cls_token.expand(len(pixels), -1, -1)
        return torch.cat((cls, patches), dim=1) + self.pos_embed
