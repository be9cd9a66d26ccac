"""A checkpoint is rolled out under load: an answer has the rows that its fingerprint names."""

import asyncio
import random

import numpy as np

from deployments.errors import FingerprintError
from deployments.messages import TowerRows
from tests.deployments.fake_towers import WIDTH, Handle, Served, row

FACTORS = {"one": 1, "two": 3}  # by which a checkpoint's rows tell it


class Rolling(Handle):
    """Replicas of two checkpoints, any of which may answer while one is rolled out."""

    def __init__(self, name, called=None) -> None:
        super().__init__(name, called)
        self.dice = random.Random(11)
        self.share_new = 0.0

    def say(self) -> str:
        return "two" if self.dice.random() < self.share_new else "one"

    def rows(self, chunk) -> TowerRows:
        made_by = self.say()
        results = [row(len(item)) * FACTORS[made_by] for item in chunk.texts()]
        return TowerRows.of(results, WIDTH, 1.0, 2.0, "text:a", made_by)


async def test_no_row_comes_under_another_fingerprint_while_a_checkpoint_is_rolled_out():
    """A thousand answers with a demanded fingerprint, from both towers at once and from the cache.

    Where that of the answer is not the one asked for there is no answer, and both kinds occur.
    """
    served = Served(max_tokens_per_chunk=64)
    tower = served.router._clients["text"]._handle = Rolling("text", served.called)
    named = {}
    for made_by, share in (("one", 0.0), ("two", 1.0)):
        tower.share_new = share
        named[(await served.router.embed([made_by])).fingerprint] = FACTORS[made_by]
    texts = ["a", "red apple", "one " * 30, "two " * 30, "b", "a longer text of several words"]
    answered, refused = 0, 0

    async def ask(number: int) -> None:
        nonlocal answered, refused
        wanted = list(named)[number % 2]
        mine = [texts[number % 6], f"{number}", texts[number % 5]]
        try:
            answer = await served.router.embed(mine, fingerprint=wanted, normalized=False)
        except FingerprintError:
            refused += 1
            return
        plain = await lengths(served, mine)
        np.testing.assert_array_equal(
            answer.embeddings, np.stack([row(x) * named[wanted] for x in plain])
        )
        assert answer.fingerprint == wanted
        answered += 1

    number = 0
    while answered < 1000:
        tower.share_new = 0.5 * (1 + np.sin(number / 300))
        await asyncio.gather(*(ask(number + i) for i in range(20)))
        number += 20
    assert refused > 100


async def lengths(served: Served, texts: list[str]) -> list[int]:
    """Return the tokens of each text, by the Router's own tokenizer."""
    encoded = served.router._preparer._tokenizer.encode_each(texts, None, None, False)
    return [len(ids) for ids in encoded]
