"""The Python client: the model card's snippets with one line changed."""

import io
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image

from deployments.errors import OverloadedError, RequestError, TowerUnavailableError
from deployments.messages import Embeddings, Usage
from deployments.model.errors import ImageError
from serve_app.client import AsyncClient, Client, retries
from serve_app.client.retries import AnswerError, retry
from serve_app.gallery import FOLDER
from tests.serve_app.client.conftest import replies

SENTENCES = ["غروب جميل على الشاطئ", "A beautiful sunset over the beach"]


def close(rows, expected) -> None:
    np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_the_transformers_snippet(service, client, model, bear):
    """encode_text, encode_image and the query, each cut to a width, are the model's rows."""
    images = [service.image_url("bear.png"), str(FOLDER / "bear.png"), Image.open(io.BytesIO(bear))]
    text_embeddings = client.encode_text(SENTENCES, truncate_dim=128)
    image_embeddings = client.encode_image(images, truncate_dim=128)
    query = client.encode_text(SENTENCES[1], task="retrieval.query", truncate_dim=128)
    close(text_embeddings, model.encode_text(SENTENCES, dimensions=128))
    close(image_embeddings, model.encode_image([bear] * 3, dimensions=128))
    expected = model.encode_text(SENTENCES[1:], task="retrieval.query", dimensions=128)[0]
    close(query, expected)
    assert query.shape == (128,)
    assert query.dtype == np.float32
    assert np.abs(query - text_embeddings[1]).max() > 1e-3


def test_the_sentence_transformers_snippet(service, model, bear):
    """One encode for texts and images, mixed; without normalising, rows of length 1 are cut."""
    with Client(service.url, truncate_dim=64) as client:
        mixed = [SENTENCES[0], service.image_url("bear.png"), str(FOLDER / "bear.png"), "bear.png"]
        rows = client.encode(mixed, normalize_embeddings=True)
        close(rows[:1], model.encode_text(SENTENCES[:1], dimensions=64))
        close(rows[1:3], model.encode_image([bear] * 2, dimensions=64))
        close(rows[3:], model.encode_text(["bear.png"], dimensions=64))  # no such file here
        query = client.encode(SENTENCES[1], prompt_name="retrieval.query")
        full = model.encode_text(SENTENCES[1:], task="retrieval.query")[0]
        close(query, full[:64])
        as_text = client.encode(["https://example.com/"], assume_text_inputs=True)
        close(as_text, model.encode_text(["https://example.com/"])[:, :64])
        with pytest.raises(ValueError, match=r"retrieval\.query"):
            client.encode("a", prompt_name="s2p")


def test_batches_keep_their_order(client, model):
    """Many batches at once come back as one matrix in the order of the list."""
    texts = [f"text number {number}" for number in range(37)]
    close(client.encode_text(texts, batch_size=4), model.encode_text(texts))
    assert client.encode_text([]).shape[0] == 0
    raw = client.encode_text(texts[:2], normalize_embeddings=False)
    close(raw, model.encode_text(texts[:2], normalized=False))


def test_tensors_where_they_are_asked_for(client):
    """One tensor, or a list of them, as the reference gives."""
    torch = pytest.importorskip("torch")
    assert isinstance(client.encode_text(SENTENCES, convert_to_tensor=True), torch.Tensor)
    listed = client.encode_text(SENTENCES, convert_to_numpy=False)
    assert [row.shape for row in listed] == [(192,), (192,)]


async def test_the_same_calls_can_be_awaited(service, model, bear):
    """AsyncClient gives the same rows, over HTTP and by handle."""
    for server in (service.url, service.handle):
        async with AsyncClient(server) as client:
            close(await client.encode_text(SENTENCES, batch_size=1), model.encode_text(SENTENCES))
            close(await client.encode_image([bear]), model.encode_image([bear]))


def test_a_refusal_is_an_exception_that_says_why(service, bear):
    """The server's message, code and request id are in it; by handle it is the error itself."""
    images = [bear, b"no image"]
    with Client(service.url) as client, pytest.raises(AnswerError, match="item 1") as refused:
        client.encode_image(images)
    assert (refused.value.status, refused.value.code) == (400, "INPUT_IMAGE_INVALID")
    assert refused.value.request_id
    with Client(service.handle) as client, pytest.raises(ImageError, match="item 1"):
        client.encode_image(images)


async def test_awaited_calls_raise_the_same_errors(service, bear):
    """Of several batches under way the first that fails is raised, not a group of them."""
    images = [b"no image", b"none either", bear]
    async with AsyncClient(service.url) as client:
        with pytest.raises(AnswerError, match="item 0") as refused:
            await client.encode_image(images, batch_size=1)
    assert refused.value.status == 400


def test_what_is_no_input_is_refused_before_it_is_sent(service):
    """A missing file and a wrong type are errors of the caller's own machine."""
    with Client("http://127.0.0.1:9") as client:
        with pytest.raises(FileNotFoundError):
            client.encode_image(["no-such-file.png"])
        with pytest.raises(TypeError, match="int"):
            client.encode_text([1])  # type: ignore[list-item]


def test_images_of_every_mode_are_sent_whole(service, model):
    """Palette, alpha, grey, CMYK: what arrives embeds as Pillow's own image does."""
    original = Image.open(FOLDER / "bear.png").convert("RGB")
    images = [original.convert(mode) for mode in ("RGB", "L", "P", "RGBA", "CMYK", "1")]
    with Client(service.url) as client:
        close(client.encode_image(images), model.encode_image(images))


def npy(rows) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, rows)
    return buffer.getvalue()


GOOD = httpx.Response(200, content=npy(np.ones((1, 4), np.float32)))


def test_a_retry_waits_as_long_as_the_server_asks(slept):
    """Milliseconds go before seconds; an error without either, and no connection, back off."""
    transport, seen = replies(
        httpx.Response(429, headers={"retry-after": "7"}),
        httpx.Response(429, headers={"retry-after": "9", "retry-after-ms": "8200"}),
        httpx.Response(503),
        httpx.ConnectError("refused"),
        GOOD,
    )
    with Client("http://x", "key", transport=transport) as client:
        assert client.encode_text(["a"]).shape == (1, 4)
    assert 7 <= slept[0] <= 7.1
    assert 8.2 <= slept[1] <= 8.3
    assert 1 <= slept[2] <= 2
    assert 2 <= slept[3] <= 4
    assert [request.headers["authorization"] for request in seen] == ["Bearer key"] * 5


def test_what_no_retry_can_help_is_raised_at_once(slept):
    """A 400 is sent once; an overloaded server is given up after the last try."""
    body = {"detail": "bad", "code": "INPUT_INVALID", "request_id": "r"}
    transport, seen = replies(httpx.Response(400, json=body))
    with Client("http://x", transport=transport) as client, pytest.raises(AnswerError, match="bad"):
        client.encode_text(["a"])
    assert len(seen) == 1
    transport, seen = replies(*[httpx.Response(429, text="<html>") for _ in range(3)])
    with (
        Client("http://x", transport=transport, max_retries=2) as client,
        pytest.raises(AnswerError, match="429"),
    ):
        client.encode_text(["a"])
    assert (len(seen), len(slept)) == (3, 2)


def test_waits_grow_up_to_a_limit_and_are_never_all_the_same():
    """Doubling from half a second to half a minute, each drawn anew for each caller."""
    for attempt, longest_s in ((1, 0.5), (2, 1.0), (6, 16.0), (7, 30.0), (40, 30.0)):
        waiting = retry(100).copy_with(attempts_made=attempt)
        waits = {waiting.wait_s(httpx.ConnectError("refused")) for _ in range(50)}
        assert longest_s / 2 <= min(waits) < max(waits) <= longest_s
        assert len(waits) > 40
    asked = httpx.Response(429, headers={"retry-after-ms": "500"})
    waits = {retry(1).wait_s(asked) for _ in range(50)}
    assert 0.5 <= min(waits) < max(waits) <= 0.6


async def test_retries_are_awaited_alike(monkeypatch):
    """The asynchronous client waits as the other does, and keeps the event loop free."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(retries, "asyncio", SimpleNamespace(sleep=sleep))
    good = httpx.Response(200, content=GOOD.content)
    transport, _ = replies(httpx.Response(503, headers={"retry-after": "2"}), good)
    async with AsyncClient("http://x", transport=transport) as client:
        assert (await client.encode_text(["a"])).shape == (1, 4)
    assert 2 <= waits[0] <= 2.1


class Handle:
    """Fails as an application's handle does, then answers with a row."""

    def __init__(self, *errors: Exception) -> None:
        self.embed = self
        self.left = list(errors)

    def remote(self, *_: object, **__: object) -> "Handle":
        return self

    def result(self, timeout_s: float) -> Embeddings:
        if self.left:
            raise self.left.pop(0)
        return Embeddings(np.ones((1, 4), np.float32), Usage(1, 0))


class WrappedError(OverloadedError):
    """A replica's error as Ray raises it: of its class, with the error itself as its cause."""

    def __init__(self, cause: OverloadedError) -> None:
        Exception.__init__(self)
        self.cause = cause


def test_errors_of_a_handle_are_retried_alike(slept):
    """What Ray wraps is read from inside; what no retry can help is raised at once."""
    handle = Handle(WrappedError(OverloadedError("full", 3.0)), TowerUnavailableError("gone"))
    with Client(handle) as client:
        assert client.encode_text(["a"]).shape == (1, 4)
    assert 3 <= slept[0] <= 3.1
    assert 1 <= slept[1] <= 1.1  # what a lost tower asks for
    with Client(Handle(RequestError("bad"))) as client, pytest.raises(RequestError, match="bad"):
        client.encode_text(["a"])
    full = [OverloadedError("full", 1.0)] * 2
    with Client(Handle(*full), max_retries=1) as client, pytest.raises(OverloadedError):
        client.encode_text(["a"])


@pytest.mark.parametrize("url", ["http://x", "http://x/", "http://x/v1", "http://x/v1/embeddings"])
def test_the_url_may_be_given_in_every_usual_form(url):
    """Server, API root and route all lead to the route."""
    transport, seen = replies(GOOD)
    with Client(url, transport=transport) as client:
        client.encode_text("a")
    assert str(seen[0].url) == "http://x/v1/embeddings"


def test_a_long_list_shows_its_progress(capsys):
    """The bar is on the error stream when asked for, and without a terminal not by itself."""
    transport, _ = replies(*[GOOD] * 20)
    with Client("http://x", transport=transport, concurrency=1) as client:
        client.encode_text(["a"] * 10, batch_size=1)
        assert capsys.readouterr().err == ""
        client.encode_text(["a"] * 10, batch_size=1, show_progress_bar=True)
    assert "10/10" in capsys.readouterr().err
