"""What a request's items become before any tower is asked: token ids, encoded images, failures."""

import base64
import threading

import numpy as np
import pytest

from deployments.config import ImageConfig
from deployments.errors import ImageSourceError
from deployments.messages import ImageItem, TextItem, TokenItem
from deployments.model.architecture import Architecture
from deployments.model.errors import ImageError, OptionError, TextTooLongError
from deployments.model.tokenizer import TextTokenizer
from deployments.model.weights.source import DEMO
from deployments.routing.preparation import SMALL_LENGTH, Preparer

ARCHITECTURE = Architecture.read(DEMO)
QUERY = "retrieval.query"


@pytest.fixture(scope="module")
def preparer() -> Preparer:
    return Preparer(DEMO, ARCHITECTURE, ImageConfig(fetch=False, max_pixels=10_000_000))


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(DEMO, ARCHITECTURE.text)


@pytest.fixture(scope="module")
def image(golden) -> bytes:
    return golden.image_bytes()[0]


async def test_every_item_keeps_its_place_in_the_request(preparer, tokenizer, image):
    """Texts, token ids and images go apart, each under its index."""
    ids = tokenizer.encode(["a cat"])[0]
    items = [
        ImageItem(image),
        TextItem("red apple"),
        TokenItem(tuple(ids.tolist())),
        ImageItem(base64.b64encode(image).decode()),
    ]
    prepared = await preparer.prepare(items, None, truncate=False)
    assert (list(prepared.token_ids), list(prepared.images)) == ([1, 2], [0, 3])
    np.testing.assert_array_equal(prepared.token_ids[1], tokenizer.encode(["red apple"])[0])
    np.testing.assert_array_equal(prepared.token_ids[2], ids)
    assert prepared.images == {0: image, 3: image}
    assert prepared.failures == {}


async def test_a_bad_item_fails_alone(preparer, image):
    """Each failure has its own type under its index, and the others are prepared."""
    items = [
        TextItem("word " * 9000),
        ImageItem(b"no image"),
        TextItem("red apple"),
        ImageItem("https://example.com/cat.png"),
        ImageItem(image),
    ]
    prepared = await preparer.prepare(items, None, truncate=False)
    assert {i: type(error) for i, error in prepared.failures.items()} == {
        0: TextTooLongError,
        1: ImageError,
        3: ImageSourceError,
    }
    assert (list(prepared.token_ids), list(prepared.images)) == ([2], [4])


async def test_an_image_with_too_many_pixels_is_refused_by_its_header(image):
    """Before any tower sees it."""
    strict = Preparer(DEMO, ARCHITECTURE, ImageConfig(max_pixels=100))
    prepared = await strict.prepare([ImageItem(image)], None, truncate=False)
    assert "pixels" in str(prepared.failures[0])


async def test_the_task_and_truncation_reach_the_tokenizer(preparer, tokenizer):
    """The query prefix comes before the text; a text over the limit is cut if that is asked."""
    query = await preparer.prepare([TextItem("a cat")], QUERY, truncate=False)
    np.testing.assert_array_equal(query.token_ids[0], tokenizer.encode(["a cat"], task=QUERY)[0])
    long = await preparer.prepare([TextItem("word " * 9000)], None, truncate=True)
    assert len(long.token_ids[0]) == ARCHITECTURE.text.max_tokens
    with pytest.raises(OptionError, match=r"'retrieval\.passage'"):
        await preparer.prepare([TextItem("a cat")], "retrieval.passage", truncate=False)


async def test_only_what_there_is_to_do_takes_time(preparer, image):
    """Without images nothing was fetched, and without texts nothing tokenised."""
    texts = await preparer.prepare([TextItem("a cat")], None, truncate=False)
    assert texts.tokenise_ms > 0
    assert texts.fetch_ms == 0
    images = await preparer.prepare([ImageItem(image)], None, truncate=False)
    assert images.tokenise_ms == 0
    assert images.fetch_ms > 0


@pytest.mark.parametrize(("length", "in_a_thread"), [(SMALL_LENGTH, False), (2000, True)])
async def test_long_texts_are_tokenised_off_the_event_loop(
    preparer, monkeypatch, length, in_a_thread
):
    """A short one takes less time than a thread takes to begin."""
    threads = []
    encode_each = preparer._tokenizer.encode_each

    def noted(*args):
        threads.append(threading.current_thread())
        return encode_each(*args)

    monkeypatch.setattr(preparer._tokenizer, "encode_each", noted)
    await preparer.prepare([TextItem("a" * length)], None, truncate=False)
    assert [thread is not threading.main_thread() for thread in threads] == [in_a_thread]
