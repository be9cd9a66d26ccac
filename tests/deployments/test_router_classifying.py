"""`Router.classify`, with stand-ins for the towers: what it refuses, and when."""

import asyncio

import numpy as np
import pytest

from deployments.errors import DeadlineError, RequestError, TowerUnavailableError
from deployments.model.errors import ImageError, OptionError, TextTooLongError
from tests.deployments.fake_towers import Served

LABELS = ["red", "green"]
LONG = "word " * 9000


@pytest.fixture
def images(golden) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """An image that the tower decodes, and one that it does not."""
    data = golden.image_bytes()[0]
    even = data + b"\0" * (len(data) % 2)
    return {"image": even}, {"image": even + b"\0"}


@pytest.mark.parametrize(
    ("items", "labels", "error", "message"),
    [
        (["a", LONG], LABELS, TextTooLongError, "item 1: "),
        (["a", {"image": b"no image"}], LABELS, ImageError, "item 1: "),
        (["a"], ["red", LONG], TextTooLongError, "label 1: "),
        (["a"], {"b": LABELS, "c": ["red", LONG]}, TextTooLongError, "label 3: "),
        ([], LABELS, RequestError, "empty"),
        (["a"], ["red"], RequestError, "two or more"),
        ([1], LABELS, RequestError, "item 0 is neither"),
    ],
)
async def test_what_can_be_refused_is_refused_before_any_work(
    images, items, labels, error, message
):
    """No tower hears of it, whatever else is in the request."""
    served = Served()
    with pytest.raises(error, match=message):
        await served.router.classify([*items, *([images[0]] if items else [])], labels)
    assert served.text.chunks == served.vision.chunks == []


async def test_no_score_is_given_of_an_image_and_a_label_of_two_checkpoints(images):
    """While other weights are rolled out one tower has them before the other.

    A text and its labels are of one tower; an answer of embeddings says which rows are whose.
    """
    served = Served()
    served.vision.fingerprint = "two"
    with pytest.raises(TowerUnavailableError, match="other weights"):
        await served.router.classify(["a", images[0]], LABELS)
    assert (await served.router.classify(["a"], LABELS)).scores.shape == (1, 2)
    assert len((await served.router.embed(["a", images[0]])).fingerprint.split()) == 2
    served.text.fingerprint = "two"
    assert (await served.router.classify(["b", images[0]], ["c", "d"])).scores.shape == (2, 2)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("logit_scale", [None, 1, "yes"]),
        ("partial", [None, 1, "partial"]),
        ("truncate", [None, "end"]),
        ("lane", ["urgent"]),
        ("timeout_s", [0, "5"]),
        ("fingerprint", ["abc"]),
    ],
)
async def test_an_option_without_a_meaning_is_refused_before_any_work(option, values):
    """A caller by handle may send anything."""
    served = Served()
    for value in values:
        with pytest.raises((OptionError, RequestError), match=option):
            await served.router.classify(["a"], LABELS, **{option: value})
    assert served.text.chunks == []


async def test_a_label_may_not_fail_where_items_may(images):
    """It is refused before any work; a broken item is zero, the others are scored."""
    served, (image, broken) = Served(), images
    with pytest.raises(TextTooLongError, match="label 1: "):
        await served.router.classify(["a", LONG], ["red", LONG], partial=True)
    assert served.text.chunks == []
    items = ["a", broken, image, LONG]
    found = await served.router.classify(items, LABELS, partial=True)
    assert {i: type(x) for i, x in found.failures.items()} == {1: ImageError, 3: TextTooLongError}
    np.testing.assert_array_equal(found.similarities[[1, 3]], 0)
    np.testing.assert_allclose(found.similarities[[0, 2]], 1, atol=1e-5)  # all rows are parallel


async def test_an_item_that_a_tower_refuses_ends_the_work_on_the_others(images):
    """What is under way at the other tower is cancelled."""
    served = Served()
    served.text.gate.clear()
    async with asyncio.timeout(60):
        with pytest.raises(ImageError, match="item 1: cannot be decoded"):
            await served.router.classify(["a", images[1]], LABELS)
    assert served.text.cancelled == 1
    assert await served.outstanding() == (0, 0)


async def test_the_trained_scale_is_that_of_the_tower_that_made_the_rows():
    """It is asked for once; another tower's is asked for anew, and none is guessed."""
    served = Served(cache_bytes=0)
    router, ask = served.router, served.text.scale
    asked = 0

    def scale():
        nonlocal asked
        asked += 1
        return ask()

    served.text.scale = scale
    for fingerprint, times in (("one", 1), ("one", 1), ("two", 2)):
        served.text.fingerprint = fingerprint
        found = await router.classify(["a", "bb"], LABELS, logit_scale=True)
        assert (found.scores.shape, asked) == ((2, 2), times)
    served.text.scale = lambda: ("three", 5.0)
    served.text.fingerprint = "four"
    with pytest.raises(TowerUnavailableError, match="being replaced"):
        await router.classify(["a"], LABELS, logit_scale=True)
    await router.classify(["a"], LABELS)  # without it none is needed


async def test_the_trained_scale_is_waited_for_no_longer_than_the_request():
    """The rows are kept here, but the tower that knows the scale does not answer."""
    served = Served()
    await served.router.classify(["a"], LABELS)
    served.text.gate.clear()
    await served.router.classify(["a"], LABELS)
    async with asyncio.timeout(10):
        with pytest.raises(DeadlineError, match=r"not done within 0\.05 s"):
            await served.router.classify(["a"], LABELS, logit_scale=True, timeout_s=0.05)
