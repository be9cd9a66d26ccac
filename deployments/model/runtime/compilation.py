"""torch.compile for the towers: one compilation per kind of block, kept on disk between starts."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from deployments.model.errors import OptionError

logger = logging.getLogger(__name__)

MODES = ("auto", "on", "off")


def resolve(mode: str, device: torch.device, int8: bool = False) -> bool:
    """Return whether to compile; `"auto"` means on CUDA, and in int8.

    Raises:
        OptionError: the mode is unknown.
    """
    if mode not in MODES:
        raise OptionError(f"compile is {mode!r}; choose one of {', '.join(MODES)}")
    return mode == "on" or (mode == "auto" and (device.type == "cuda" or int8))


class Compiled:
    """A method of a block, compiled for any number of rows.

    Parameters are inputs of the compiled code, so all blocks of a tower share one compilation.

    Args:
        forward: the method.
        required: raise what the compiler raises; else run as written from then on, with a warning.
    """

    def __init__(self, forward: Callable[..., Tensor], required: bool) -> None:
        keep_caches()
        self._plain = forward
        self._required = required
        self._run = torch.compile(forward, dynamic=True, fullgraph=True)

    def __call__(self, *args: object) -> Tensor:
        """Run it; compiles at the first call."""
        try:
            return self._run(*args)
        except RuntimeError as error:
            if self._required or self._run is self._plain or not is_compilers(error):
                raise
            logger.warning(
                "torch.compile failed, so this tower runs slower, without it: %s",
                str(error).splitlines()[0],
            )
            self._run = self._plain
            return self._plain(*args)


def is_compilers(error: RuntimeError) -> bool:
    """Tell whether the compiler raised it."""
    # Not at the top: it is the whole compiler, which a tower as written never needs.
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)


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
