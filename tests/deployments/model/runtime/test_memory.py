"""Freed memory goes back to the system."""

import ctypes
import platform

import psutil
import pytest

from deployments.model.runtime.memory import trim

BLOCK_BYTES, BLOCKS, KEPT = 64 * 1024, 2000, 100


def resident_bytes():
    return psutil.Process().memory_info().rss


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has malloc_trim")
def test_holes_between_blocks_in_use_are_given_back():
    """Freeing most of many blocks leaves their memory with the process, until it is trimmed."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    blocks = [libc.malloc(BLOCK_BYTES) for _ in range(BLOCKS)]
    for block in blocks:
        libc.memset(block, 1, BLOCK_BYTES)
    full = resident_bytes()
    for index, block in enumerate(blocks):
        if index % KEPT:
            libc.free(block)
    holed = resident_bytes()
    trim()
    trimmed = resident_bytes()
    for block in blocks[::KEPT]:
        libc.free(block)
    size = BLOCKS * BLOCK_BYTES
    assert full - holed < size / 2
    assert full - trimmed > size * 0.9
