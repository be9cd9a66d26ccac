"""torch.compile for the towers: one compilation per kind of block, kept on disk between starts."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from deployments.model.errors import OptionError

MODES = ("auto", "on", "off")


def resolve(mode: str, device: torch.device) -> bool:
    """Return whether to compile; `"auto"` means on CUDA only.

    Raises:
        OptionError: the mode is unknown.
    """
    if mode not in MODES:
        raise OptionError(f"compile is {mode!r}; choose one of {', '.join(MODES)}")
    return mode == "on" or (mode == "auto" and device.type == "cuda")


def compiled(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a method of a block compiled for any number of rows.

    Parameters are inputs of the compiled code, so all blocks of a tower share one compilation.
    """
    keep_caches()
    return torch.compile(forward, dynamic=True, fullgraph=True)


def keep_caches() -> None:
    """Put the compilers' caches under the user's cache folder, unless the environment says where.

    Their own defaults are a temporary folder (torch) and no cache (flash-attn-4). Both libraries
    take the place from the environment only.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "jina-clip-serve" / "compiled"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "torch"))
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(folder / "flash_attn_4"))
