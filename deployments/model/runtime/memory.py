"""What a batch budget takes of the device's memory, and what a CPU can give back."""

import ctypes
import logging
from collections.abc import Callable

import torch

from deployments.model.errors import OptionError

logger = logging.getLogger(__name__)


def trim() -> None:
    """Give the system what the C library keeps of freed memory, where it is glibc.

    Batches of ever other sizes leave holes in its heap: two text towers on a CPU took 2.4 GB more
    after six minutes (benchmarks/README.md). Takes 10 to 25 ms.
    """
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(0)


def require(
    run: Callable[[int], object], budget: int, step: int, name: str, device: torch.device
) -> int:
    """Run a full batch and return the device memory in use at its peak, in bytes; 0 on a CPU.

    Args:
        run: runs a batch of the size that it is given.
        budget: the size that has to fit.
        step: a smaller budget is suggested in multiples of this.
        name: the option, for the message.
        device: where the batch runs; a CPU is not tried, since a full batch takes minutes there.

    Raises:
        OptionError: the budget does not fit; the message names the largest that does.
    """
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    if not fits(run, budget):
        largest = _largest(run, -(-budget // step), step) * step
        free, total = torch.cuda.mem_get_info(device)
        raise OptionError(
            f"{name}={budget:,} does not fit on {device} ({free / 2**30:.1f} of "
            f"{total / 2**30:.1f} GiB free); the largest that fits is {largest:,}"
        )
    peak_bytes = torch.cuda.max_memory_reserved(device)
    total_bytes = torch.cuda.get_device_properties(device).total_memory
    logger.info(
        "memory at %s=%d: %.2f of %.1f GiB", name, budget, peak_bytes / 2**30, total_bytes / 2**30
    )
    return peak_bytes


def fits(run: Callable[[int], object], size: int) -> bool:
    """Run a batch of a size and tell whether the device's memory held it."""
    try:
        run(size)
    except torch.OutOfMemoryError:
        held = False
    else:
        held = True
    if not held:  # outside of the handler, whose traceback keeps the tensors alive
        torch.cuda.empty_cache()
    return held


def _largest(run: Callable[[int], object], too_many: int, step: int) -> int:
    """Return the largest number of steps below `too_many` that fits, 0 if none does."""
    held = 0
    while too_many - held > 1:
        middle = (held + too_many) // 2
        if fits(run, middle * step):
            held = middle
        else:
            too_many = middle
    return held
