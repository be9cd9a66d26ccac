"""What a request's items become before any tower is asked: token ids, encoded images, failures."""

import base64
import threading

import numpy as np
import pytest

from deployments.errors import ImageSourceError, OverloadedError, RequestTooLargeError
from deployments.image_config import ImageConfig
from deployments.messages import ImageItem, TextItem, TokenItem
from deployments.model.architecture import Architecture
from deployments.model.errors import ImageError, OptionError, TextTooLongError
from deployments.model.tokenizer import TextTokenizer
from deployments.model.weights.source import DEMO
from deployments.routing.admission import Budget
from deployments.routing.preparation import SMALL_LENGTH, Preparer, sources_of

ARCHITECTURE = Architecture.read(DEMO)
QUERY = "retrieval.query"


@pytest.fixture(scope="module")
def preparer() -> Preparer:
    return Preparer(DEMO, ARCHITECTURE, ImageConfig(fetch=False, max_pixels=10_000_000), 64)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(DEMO, ARCHITECTURE.text)


@pytest.fixture(scope="module")
def image(golden) -> bytes:
    return golden.image_bytes()[0]


async def fetch(preparer, items, budget=None, copies=4):
    """Fetch what images there are; the budget has their bytes so many times while they are held."""
    budget = budget or Budget("bytes", 10_000_000)
    with budget.hold("interactive") as hold:
        prepared = await preparer.fetch(sources_of(items), hold)
        different = {id(data): len(data) for data in prepared.items.values()}
        assert budget.outstanding == pytest.approx(copies * sum(different.values()), abs=8)
    return prepared


async def test_every_item_keeps_its_place_in_the_request(preparer, tokenizer, image):
    """Texts, token ids and images go apart, each under its index."""
    ids = tokenizer.encode(["a cat"])[0]
    items = [
        ImageItem(image),
        TextItem("red apple"),
        TokenItem(tuple(ids.tolist())),
        ImageItem(base64.b64encode(image).decode()),
    ]
    texts, images = await preparer.tokenise(items, None, False), await fetch(preparer, items)
    np.testing.assert_array_equal(texts.items[1], tokenizer.encode(["red apple"])[0])
    np.testing.assert_array_equal(texts.items[2], ids)
    assert list(texts.items) == [1, 2]
    assert images.items == {0: image, 3: image}
    assert texts.failures == images.failures == {}


async def test_a_bad_item_fails_alone(preparer, image):
    """Each failure has its own type under its index, and the others are prepared."""
    items = [
        TextItem("word " * 9000),
        ImageItem(b"no image"),
        TextItem("red apple"),
        ImageItem("https://example.com/cat.png"),
        ImageItem(image),
    ]
    texts, images = await preparer.tokenise(items, None, False), await fetch(preparer, items)
    failures = texts.failures | images.failures
    assert {i: type(error) for i, error in failures.items()} == {
        0: TextTooLongError,
        1: ImageError,
        3: ImageSourceError,
    }
    assert (list(texts.items), list(images.items)) == ([2], [4])


async def test_an_image_with_too_many_pixels_is_refused_by_its_header(image):
    """Before any tower sees it."""
    strict = Preparer(DEMO, ARCHITECTURE, ImageConfig(max_pixels=100), 64)
    prepared = await fetch(strict, [ImageItem(image)])
    assert "pixels" in str(prepared.failures[0])


async def test_the_same_image_in_many_places_is_read_once(preparer, image, monkeypatch):
    """Every place has it, and it takes its bytes once."""
    read = []
    read_one = preparer._images.read

    async def noted(source, claim):
        read.append(source)
        return await read_one(source, claim)

    monkeypatch.setattr(preparer._images, "read", noted)
    text = base64.b64encode(image).decode()
    prepared = await fetch(preparer, [ImageItem(text)] * 50 + [ImageItem("no image")] * 2)
    assert prepared.items == dict.fromkeys(range(50), image)
    assert set(prepared.failures) == {50, 51}
    assert read == [text, "no image"]


async def test_images_in_the_request_are_admitted_by_their_bytes_before_they_are_unpacked(
    preparer, image, monkeypatch
):
    """Too many for what there is now, and too many for ever; neither leaves bytes behind."""
    monkeypatch.setattr(preparer, "_images", None)  # none is read
    budget = Budget("bytes", 8 * len(image))
    budget.admit(4 * len(image), "bulk")
    for copies, error in ((1, OverloadedError), (2, RequestTooLargeError)):
        texts = [base64.b64encode(image + b"%d" % i).decode() for i in range(copies)]
        with pytest.raises(error):
            await fetch(preparer, [ImageItem(text) for text in texts], budget)
    assert budget.outstanding == 4 * len(image)


async def test_images_that_wait_for_their_turn_have_no_copies_yet(image):
    """Of eight images two are sent at once: three further copies of a quarter of the bytes."""
    preparer = Preparer(DEMO, ARCHITECTURE, ImageConfig(fetch=False, max_pixels=10_000_000), 2)
    items = [ImageItem(image + b"%d" % i) for i in range(8)]
    assert len((await fetch(preparer, items, copies=1.75)).items) == 8


async def test_the_task_and_truncation_reach_the_tokenizer(preparer, tokenizer):
    """The query prefix comes before the text; a text over the limit is cut if that is asked."""
    query = await preparer.tokenise([TextItem("a cat")], QUERY, truncate=False)
    np.testing.assert_array_equal(query.items[0], tokenizer.encode(["a cat"], task=QUERY)[0])
    long = await preparer.tokenise([TextItem("word " * 9000)], None, truncate=True)
    assert len(long.items[0]) == ARCHITECTURE.text.max_tokens
    with pytest.raises(OptionError, match=r"'retrieval\.passage'"):
        await preparer.tokenise([TextItem("a cat")], "retrieval.passage", truncate=False)


async def test_only_what_there_is_to_do_takes_time(preparer, image):
    """Without images nothing was fetched, and without texts nothing tokenised."""
    for items, is_text in (([TextItem("a cat")], True), ([ImageItem(image)], False)):
        texts, images = await preparer.tokenise(items, None, False), await fetch(preparer, items)
        assert [texts.took_ms > 0, images.took_ms > 0] == [is_text, not is_text]


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
    await preparer.tokenise([TextItem("a" * length)], None, truncate=False)
    assert [thread is not threading.main_thread() for thread in threads] == [in_a_thread]
