"""`Client.classify`: labels for texts and images, over HTTP and by handle."""

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from deployments.errors import OverloadedError, RequestError
from deployments.messages import Classification, Timings, Usage
from serve_app.client import AsyncClient, Client
from serve_app.client.retries import AnswerError
from serve_app.gallery import FOLDER
from tests.serve_app.client.conftest import replies

LABELS = ["a red apple", "a brown bear", "an airplane"]
IMAGES = [str(FOLDER / name) for name in ("red-apple.png", "bear.png", "airplane.png")]


def answer(*similarities: list[float], **more: Any) -> httpx.Response:
    """The server's answer to items with these cosines to "a" and "b"; scores are ten times them."""
    data = [
        {
            "index": index,
            "predictions": [
                {"label": label, "similarity": cosine, "score": 10 * cosine} | more
                for label, cosine in zip("ab", row, strict=True)
            ],
        }
        for index, row in enumerate(similarities)
    ]
    return httpx.Response(200, json={"data": data})


def cosines(model) -> np.ndarray:
    images = [Path(name).read_bytes() for name in IMAGES]
    return model.encode_image(images) @ model.encode_text(LABELS).T


def test_texts_and_images_get_the_label_that_is_nearest(client, model):
    """The cosines are the model's; scores add up to 1; several batches are one answer."""
    found = client.classify([*IMAGES, "a bear"], LABELS, batch_size=2)
    np.testing.assert_allclose(found.similarities[:3], cosines(model), atol=1e-5)
    assert found.similarities.shape == found.scores.shape == (4, 3)
    assert found.scores.dtype == np.float32
    np.testing.assert_allclose(found.scores.sum(axis=1), 1, atol=1e-5)
    assert found.best() == [*LABELS, LABELS[1]]
    assert (found.labels, found.groups) == (tuple(LABELS), ())


def test_each_group_of_labels_is_a_choice_of_its_own(client):
    """Without a name, of the first; one item alone is a list of one."""
    labels = {"fruit": ["a banana", "a red apple"], "colour": ["red", "black"]}
    found = client.classify(IMAGES[0], labels, logit_scale=True)
    assert found.groups == ("fruit", "fruit", "colour", "colour")
    assert found.best() == found.best("fruit") == ["a red apple"]
    assert found.best("colour")[0] in labels["colour"]
    with pytest.raises(ValueError, match=r"'size'.*fruit, colour"):
        found.best("size")


async def test_it_can_be_awaited(service, model):
    """With the same numbers, over HTTP and by handle."""
    for server in (service.url, service.handle):
        async with AsyncClient(server) as client:
            found = await client.classify(IMAGES, LABELS, batch_size=1)
        np.testing.assert_allclose(found.similarities, cosines(model), atol=1e-5)


def test_what_the_server_refuses_is_raised_with_its_reason(service):
    """Over HTTP with status and code, by handle as the error itself; texts are not cut unasked."""
    with Client(service.url) as client:
        with pytest.raises(AnswerError, match="two or more") as refused:
            client.classify(["x"], ["one"])
        assert (refused.value.status, refused.value.code) == (400, "INPUT_INVALID")
        with pytest.raises(AnswerError, match="item 0"):
            client.classify(["word " * 9000], LABELS)
        assert len(client.classify(["word " * 9000], LABELS, truncation=True)) == 1
    with Client(service.handle) as client, pytest.raises(RequestError, match="two or more"):
        client.classify(["x"], ["one"])


def test_a_batch_is_sent_with_its_key_and_once_more_where_that_may_help(slept):
    """429 waits as long as it is asked to; the body is that of `POST /v1/classify`."""
    busy = httpx.Response(429, headers={"retry-after-ms": "700"})
    transport, seen = replies(busy, answer([0.25, 0.5], [0.5, 0.125]))
    with Client("http://x/v1", "key", model="m", transport=transport) as client:
        found = client.classify(["s", "http://y/z.png"], ["a", "b"])
    np.testing.assert_array_equal(found.similarities, np.float32([[0.25, 0.5], [0.5, 0.125]]))
    np.testing.assert_array_equal(found.scores, 10 * found.similarities)
    assert 0.7 <= slept[0] <= 0.8
    assert {(str(x.url), x.headers["authorization"]) for x in seen} == {
        ("http://x/v1/classify", "Bearer key")
    }
    assert json.loads(seen[1].content) == {
        "model": "m",
        "input": [{"text": "s"}, {"image": "http://y/z.png"}],
        "labels": ["a", "b"],
        "logit_scale": False,
        "truncate": False,
    }


def test_strings_are_texts_where_that_is_said():
    """An address is a text like another then; no input sends nothing."""
    transport, seen = replies(answer([1.0, 0.0]))
    with Client("http://x", transport=transport) as client:
        client.classify("http://y/z.png", ["a", "b"], assume_text_inputs=True)
        assert json.loads(seen[0].content)["input"] == [{"text": "http://y/z.png"}]
        nothing = client.classify([], ["a", "b"])
    assert (len(seen), len(nothing), nothing.best()) == (1, 0, [])


class Handle:
    """An application's handle that is full at first."""

    def __init__(self) -> None:
        self.classify = self
        self.errors = [OverloadedError("full", 2.0)]

    def remote(self, *_: object, **__: object) -> "Handle":
        return self

    def result(self, timeout_s: float) -> Classification:
        assert timeout_s == 9
        if self.errors:
            raise self.errors.pop()
        rows = np.ones((1, 2), np.float32)
        rest = Usage(1, 0), {}, Timings(), "", ()
        return Classification(("a", "b"), (), rows, rows, *rest)


def test_a_handle_is_asked_again_alike(slept):
    """After the time that it says, and within the client's own."""
    with Client(Handle(), timeout_s=9) as client:  # type: ignore[arg-type]
        assert client.classify(["s"], ["a", "b"]).best() == ["a"]
    assert 2 <= slept[0] <= 2.1
