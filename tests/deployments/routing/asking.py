"""Asks a tower of `conftest.py` for rows, as a Router does."""

import asyncio

import numpy as np

from deployments.config import RouterConfig
from deployments.model.errors import EmbeddingError
from deployments.routing.tolerance import Tolerance
from deployments.routing.tower_request import TextRequest

WIDTH = 4
LIMITS = RouterConfig(
    max_tokens_per_chunk=8, max_images_per_chunk=4, max_chunk_bytes=100, max_chunks_in_flight=2
)
CACHE_BYTES = 1_000_000


def texts_of(firsts):
    """Return texts of two tokens, at every second place of a request."""
    return {2 * i: np.array([first, 1], np.int32) for i, first in enumerate(firsts)}


async def run(kind, tower, items, lane="interactive", partial=False):
    with tower.budget.hold(lane) as hold:
        request = kind(
            tower, items, hold, lane, in_a_minute(), LIMITS, WIDTH, Tolerance(partial, 1000)
        )
        await request.admit()
        await request.run()
    return request


def in_a_minute():
    return asyncio.get_running_loop().time() + 60


async def embed(tower, firsts, partial=False, lane="interactive"):
    """Return the first column of the rows of texts, and their failures by place in `firsts`."""
    request = await run(TextRequest, tower, texts_of(firsts), lane, partial)
    assert request.indices == [2 * i for i in range(len(firsts))]
    failures: dict[int, EmbeddingError] = {i // 2: x for i, x in request.failures.items()}
    return request.rows[:, 0].tolist(), failures
