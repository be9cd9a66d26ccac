"""Rows as torch tensors, for callers who want them."""

import torch

from deployments.model.output import Rows


def to_tensor(rows: Rows, device: str | None = None) -> torch.Tensor:
    """Return rows [n, width] as a float32 tensor on a device, by default the CPU."""
    return torch.from_numpy(rows.copy()).to(device or "cpu")
