"""`POST /v1/classify` on a running service, against numbers computed from embeddings."""

import base64
import math

import numpy as np
import pytest

from deployments.model import ClipModel
from serve_app.gallery import FOLDER

LABELS = ["a red apple", "a brown bear", "an airplane"]
FILES = ["red-apple.png", "bear.png", "airplane.png"]


@pytest.fixture(scope="module")
def model() -> ClipModel:
    return ClipModel.load()


@pytest.fixture(scope="module")
def items():
    images = [(FOLDER / name).read_bytes() for name in FILES]
    return [{"image": base64.b64encode(image).decode()} for image in images] + [{"text": "bears"}]


def classify(service, path="/v1/classify", **body):
    answer = service.client.post(path, json={"model": "jina-clip-v2"} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def matrix(answer, field):
    return np.array([[x[field] for x in row["predictions"]] for row in answer["data"]])


@pytest.mark.parametrize("logit_scale", [False, True])
def test_scores_are_those_of_the_embeddings(service, model, items, logit_scale):
    """By the temperature 1, or by the one that the checkpoint was trained to."""
    rows = np.array(service.embed([*items, *LABELS]), np.float64)
    cosines = rows[:4] @ rows[4:].T
    answer = classify(service, input=items, labels=LABELS, logit_scale=logit_scale)
    scale = math.exp(model.logit_scale) if logit_scale else 1.0
    assert scale != 1.0 or not logit_scale
    np.testing.assert_allclose(matrix(answer, "similarity"), cosines, atol=1e-5)
    np.testing.assert_allclose(matrix(answer, "score"), softmax(scale * cosines), atol=1e-4)
    best = [LABELS[i] for i in cosines.argmax(axis=1)]
    assert [row["prediction"] for row in answer["data"]] == best
    assert best[:3] == LABELS
    assert [row["score"] for row in answer["data"]] == matrix(answer, "score").max(axis=1).tolist()
    assert {row["object"] for row in answer["data"]} == {"classification"}
    assert [row["index"] for row in answer["data"]] == [0, 1, 2, 3]
    assert answer["usage"]["images"] == 3


def test_groups_are_choices_of_their_own(service, items):
    """Each has its best label; the first one's is the prediction."""
    labels = {"fruit": ["a red apple", "a banana"], "place": ["in the air", "in a forest"]}
    answer = classify(service, "/classify/", input=items[:1], labels=labels)
    (row,) = answer["data"]
    assert list(row["groups"]) == ["fruit", "place"]
    assert row["prediction"] == row["groups"]["fruit"]["prediction"] == "a red apple"
    assert [x["group"] for x in row["predictions"]] == ["fruit", "fruit", "place", "place"]
    assert matrix(answer, "score")[0, 2:].sum() == pytest.approx(1)


def test_a_broken_item_is_null_where_items_may_fail(service, items):
    """With a reason in `errors`; otherwise the request fails by its name."""
    body = {"input": [items[0], {"image": "aGVsbG8="}], "labels": LABELS}
    answer = classify(service, **body, errors="partial")
    assert [row["prediction"] for row in answer["data"]] == ["a red apple", None]
    assert [fault["index"] for fault in answer["errors"]] == [1]
    refused = service.client.post("/v1/classify", json=body)
    assert refused.status_code == 400
    assert "item 1" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"labels": ["a"], "input": ["x"]}, 400, "two or more"),
        ({"input": ["x"]}, 400, "'labels' is missing"),
        ({"labels": LABELS}, 400, "'input' is missing"),
        ({"labels": LABELS, "input": []}, 400, "empty"),
        ({"labels": LABELS, "input": ["x"] * 513}, 400, "513 items; the limit is 512"),
        ({"labels": LABELS, "input": ["x"], "logit_scale": 3}, 422, "true or false"),
        ({"labels": [*LABELS, "word " * 9000], "input": ["x"]}, 400, "label 3"),
    ],
)
def test_what_cannot_be_classified_is_refused(service, body, status, message):
    """Before the towers are asked, where that can be told."""
    answer = service.client.post("/v1/classify", json=body)
    assert (answer.status_code, message in answer.json()["detail"]) == (status, True), answer.text


def test_the_handle_gives_the_same_numbers(service, items):
    """Similarities and scores as float32 arrays."""
    over_http = classify(service, input=items, labels=LABELS)
    images = [{"image": (FOLDER / name).read_bytes()} for name in FILES]
    found = service.handle.classify.remote([*images, "bears"], LABELS).result()
    np.testing.assert_allclose(found.scores, matrix(over_http, "score"), atol=1e-5)
    assert found.labels == tuple(LABELS)
