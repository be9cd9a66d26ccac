"""What the engine knows of texts and of images."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from deployments.config import AppConfig
from deployments.engine.inputs import ImageInputs, TextInputs
from deployments.messages import ImageChunk, Terms, TextChunk
from deployments.model.errors import ImageError

CONFIG = AppConfig()
TERMS = Terms("interactive", 60)


async def test_a_text_costs_its_tokens_and_comes_out_as_it_went_in():
    """The chunk's ids are cut where the lengths say."""
    inputs = TextInputs(CONFIG)
    texts = [np.arange(n, dtype=np.int32) for n in (3, 1, 7)]
    chunk = TextChunk.of(texts, TERMS)
    assert inputs.costs(chunk) == [3, 1, 7]
    async with inputs.prepare(SimpleNamespace(), chunk) as (items, failures):
        assert [ids.tolist() for ids in items] == [ids.tolist() for ids in texts]
        assert failures == {}


@pytest.mark.parametrize("inputs", [TextInputs(CONFIG), ImageInputs(CONFIG, 10**6)])
def test_pinned_inputs_run_and_give_a_row_each(demo, inputs):
    """The self-check embeds them with the same function as everything else."""
    for batch in inputs.pinned(demo):
        assert inputs.launch(demo, batch).rows().shape == (len(batch), demo.width)


async def test_a_broken_image_has_its_reason_and_the_others_their_pixels(demo, golden):
    """Each image counts once, broken or not; the time of the decoding is told."""
    spent_s = []
    inputs = ImageInputs(CONFIG, 10**7, spent_s.append)
    first, second = golden.image_bytes()[:2]
    chunk = ImageChunk((first, b"broken", second), TERMS)
    assert inputs.costs(chunk) == [1, 1, 1]
    async with inputs.prepare(demo, chunk) as (items, failures):
        np.testing.assert_array_equal(np.stack(items), golden.arrays["crops"][:2])
        assert list(failures) == [1]
        assert isinstance(failures[1], ImageError)
    assert len(spent_s) == 1
    async with ImageInputs(CONFIG, 10).prepare(demo, chunk) as (items, failures):
        assert (items, list(failures)) == ([], [0, 1, 2])  # all larger than 10 pixels


async def test_no_more_than_two_batches_of_each_kind_are_decoded_ahead():
    """Pixels are large; a call of few images does not wait for those of large ones."""
    inputs = ImageInputs(CONFIG, 10**6)
    decoded = []

    def decode_images(images, max_pixels):
        decoded.append(images)
        return SimpleNamespace(pixels=[], failures={})

    model = SimpleNamespace(decode_images=decode_images)
    leave = asyncio.Event()

    async def hold(images: int, lane: str = "interactive") -> None:
        chunk = ImageChunk((b"",) * images, Terms(lane, 60))
        async with inputs.prepare(model, chunk):
            held.release()
            await leave.wait()

    held = asyncio.Semaphore(0)
    ahead = 2 * CONFIG.vision.max_batch_images // CONFIG.router.max_images_per_chunk
    tasks = [asyncio.create_task(hold(8)) for _ in range(ahead + 3)]
    for _ in range(ahead):
        await held.acquire()
    tasks += [asyncio.create_task(hold(1)), asyncio.create_task(hold(8, "bulk"))]
    for _ in range(2):
        await asyncio.wait_for(held.acquire(), 10)
    assert len(decoded) == ahead + 2
    leave.set()
    await asyncio.gather(*tasks)
    assert len(decoded) == ahead + 5
