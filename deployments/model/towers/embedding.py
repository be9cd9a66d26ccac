"""The word embedding as the checkpoint stores it; the adapter's part is added at look-up."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class AdaptedRows:
    """A table with a low-rank adapter beside it; row i is `table[i] + scale * tall[i] @ wide`.

    Attributes:
        table: [V, C], in whatever precision it is stored.
        tall: float32 [V, R].
        wide: float32 [R, C].
        scale: factor on the adapter's product.
    """

    table: Tensor
    tall: Tensor
    wide: Tensor
    scale: float


class WordEmbedding(nn.Module):
    """Looks rows up in a table that may be mapped from a file, for a CPU.

    The published table takes 1 GB in float32; mapped, the system keeps the pages that are read, one
    copy for all replicas of a machine. Nothing here is a parameter, so nothing converts the table.
    """

    def __init__(self, rows: AdaptedRows, dtype: torch.dtype) -> None:
        super().__init__()
        self._rows = rows
        self._dtype = dtype

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return [T, C] for integers [T]."""
        rows = self._rows
        tall_TR = rows.tall[token_ids]
        # A matrix product rounds a few rows in another way than many; this one rounds each row as
        # the merged table has it, whatever its batch.
        added_TC = tall_TR[:, :1] * rows.wide[0]
        for rank in range(1, len(rows.wide)):
            added_TC.addcmul_(tall_TR[:, rank : rank + 1], rows.wide[rank])
        return rows.table[token_ids].float().add_(added_TC, alpha=rows.scale).to(self._dtype)
