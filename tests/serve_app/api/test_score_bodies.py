"""`POST /v1/classify` as .npy and Arrow; the Router is a stand-in."""

import io
import json
import sys
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from deployments.config import AppConfig
from deployments.model.errors import ImageError
from serve_app.api import arrow, ingress
from tests.serve_app.api.stand_in import StandIn

LABELLED = {"input": ["a", "b"], "labels": ["c", "d", "e"]}


@pytest.fixture
def router() -> StandIn:
    return StandIn(AppConfig())


@pytest.fixture
def client(router: StandIn) -> Iterator[TestClient]:
    with TestClient(ingress.http_app(router.config, lambda: router)) as client:
        yield client


def test_scores_come_in_the_body_type_that_is_accepted(client):
    """The matrix as .npy; in Arrow similarities too, with the labels in the schema."""
    answer = client.post("/v1/classify", json=LABELLED, headers={"accept": "application/x-npy"})
    assert answer.headers["content-type"] == "application/x-npy"
    scores = np.load(io.BytesIO(answer.content))
    np.testing.assert_allclose(scores, np.full((2, 3), 1 / 3), atol=1e-6)
    answer = client.post("/v1/classify", json=LABELLED, headers={"accept": arrow.MEDIA_TYPE})
    table = pa.ipc.open_stream(answer.content).read_all()
    np.testing.assert_array_equal(np.stack(table["score"].to_numpy()), scores)
    np.testing.assert_allclose(np.stack(table["similarity"].to_numpy()), scores - 1)
    facts = json.loads(table.schema.metadata[arrow.FACTS])
    assert (facts["labels"], facts["usage"]["total_tokens"]) == (["c", "d", "e"], 3)
    answer = client.post("/v1/classify", json=LABELLED, headers={"accept": "text/csv, */*"})
    assert answer.json()["data"][1]["predictions"][2]["label"] == "e"


def test_labels_are_not_asked_for_where_the_scores_cannot_be_written(client, router, monkeypatch):
    """Arrow without its library, which is optional; an item's failure has no place in .npy."""
    router.failures = {1: ImageError("not an image")}
    asked = {"json": LABELLED, "headers": {"accept": "application/x-npy"}}
    assert client.post("/v1/classify", **asked).status_code == 400
    answer = client.post("/v1/classify", json=LABELLED, headers={"accept": arrow.MEDIA_TYPE})
    table = pa.ipc.open_stream(answer.content).read_all()
    assert table["score"].to_pylist()[1] is None
    assert table["error"].to_pylist()[1] == "INPUT_IMAGE_INVALID: not an image"
    router.asked.clear()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    answer = client.post("/v1/classify", json=LABELLED, headers={"accept": arrow.MEDIA_TYPE})
    assert answer.status_code == 400
    assert "jina-clip-serve[arrow]" in answer.json()["detail"]
    assert router.asked == []
