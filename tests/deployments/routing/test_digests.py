"""The keys by which items are the same."""

import numpy as np

from deployments.routing.sharing import LARGE_BYTES, digests


async def test_a_digest_tells_contents_apart_and_is_the_same_off_the_event_loop():
    """One byte or one token more makes another key; large contents are hashed in a thread."""
    large = bytes(LARGE_BYTES)
    keys = await digests([large, large + b"\0", b""])
    assert len(set(keys)) == 3
    assert (await digests([b""])) == keys[2:]
    texts = [np.array(ids, np.int32) for ids in ([1, 2], [2, 1], [1], [1, 2, 0])]
    assert len(set(await digests(texts))) == 4
