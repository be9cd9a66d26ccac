"""The routes over a Router that is a stand-in: no Ray, no towers."""

import gzip
import io
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from deployments.config import AppConfig
from deployments.errors import OverloadedError, RequestError, ServiceError
from deployments.messages import TextItem
from serve_app.api import ingress
from serve_app.api.keys import digest_of
from tests.serve_app.api.stand_in import StandIn


@pytest.fixture
def config() -> AppConfig:
    return AppConfig()


@pytest.fixture
def router(config: AppConfig) -> StandIn:
    return StandIn(config)


@pytest.fixture
def client(router: StandIn) -> Iterator[TestClient]:
    with TestClient(ingress.http_app(router.config, lambda: router)) as client:
        yield client


def test_a_request_reaches_the_router_and_comes_back_rendered(client, router):
    """Every option arrives in its place, and the headers say what answered and what it cost."""
    body = {
        "input": ["a", {"text": "b"}],
        "task": "retrieval.query",
        "dimensions": 8,
        "normalized": False,
        "truncate": True,
        "errors": "partial",
        "timeout_s": 2,
    }
    headers = {"x-priority": "bulk", "x-embedding-fingerprint": "text:f"}
    answer = client.post("/v1/embeddings", json=body, headers=headers)
    assert answer.status_code == 200
    items = [TextItem("a"), TextItem("b")]
    options = ("retrieval.query", 8, False, True, "bulk", 2.0, True, "text:f")
    assert router.asked == [(items, *options)]
    assert [row["embedding"] for row in answer.json()["data"]] == [[1.0] * 8] * 2
    assert answer.headers["x-embedding-fingerprint"] == "text:f"
    assert answer.headers["x-embedding-replicas"] == "text:r"
    assert '"total_tokens":3' in answer.headers["x-embedding-usage"]
    assert "towers;dur=2.00" in answer.headers["server-timing"]
    assert {"parse", "render"} <= router.metrics.stages_ms.keys()


def test_the_accept_header_chooses_the_body(client):
    """The rows as .npy where the client asks for it."""
    answer = client.post(
        "/invocations", json={"input": "a"}, headers={"accept": "application/x-npy"}
    )
    np.testing.assert_array_equal(np.load(io.BytesIO(answer.content)), np.ones((1, 8)))


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ({"input": [1.5]}, {}, 400),
        ({"input": "a", "dimensions": 5000}, {}, 422),
        ({"input": "a"}, {"x-priority": "urgent"}, 422),
        ({"input": "a", "embedding_type": ["int8", "float"]}, {"accept": "application/x-npy"}, 400),
    ],
)
def test_what_can_be_refused_is_refused_before_the_router(client, router, body, headers, status):
    """The form of the answer included; the refusal is counted, and the Router not asked."""
    assert client.post("/v1/embeddings", json=body, headers=headers).status_code == status
    assert router.asked == []
    assert len(router.metrics.refused) == 1


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (RequestError("why"), 400, None),
        (OverloadedError("full", 1.5), 429, "2"),
        (KeyError("a secret"), 500, None),
    ],
)
def test_errors_of_the_router_become_answers(client, router, error, status, retry_after):
    """Ours with their message; others without a word of it."""
    router.error = error
    answer = client.post("/v1/embeddings", json={"input": "a"})
    assert (answer.status_code, answer.headers.get("retry-after")) == (status, retry_after)
    assert "secret" not in answer.text


def test_ready_follows_the_router_and_health_does_not(client, router):
    """A server whose towers do not answer is alive and not ready."""
    for is_ready, status in ((True, 200), (False, 503)):
        router.is_ready = is_ready
        assert client.get("/ready").status_code == client.get("/ping").status_code == status
        assert client.get("/health").json() == {"status": "alive"}


def test_models_and_unknown_paths_are_json(client):
    """The list of models; 404 and 405 in the form of every other error."""
    (entry,) = client.get("/v1/models").json()["data"]
    assert (entry["id"], entry["fingerprints"]) == ("jina-clip-demo", {"text": "f"})
    assert client.get("/nothing").json()["code"] == "NOT_FOUND"
    assert client.get("/v1/embeddings").json()["code"] == "METHOD_NOT_ALLOWED"


def test_the_playground_can_be_left_out(router):
    """`/` is there by default only."""
    for with_playground, status in ((True, 200), (False, 404)):
        config = AppConfig.model_validate({"router": {"playground": with_playground}})
        app = ingress.http_app(config, lambda: router)
        with TestClient(app) as client:
            assert client.get("/").status_code == status


@pytest.mark.parametrize(
    "path",
    ["/v1/embeddings/", "/embeddings", "/embeddings/", "/openai/deployments/any/embeddings"],
)
def test_the_ways_clients_spell_the_path_are_answered(client, path):
    """With a slash at the end, without /v1, as Azure has it; never a redirect."""
    answer = client.post(path, json={"input": "a"}, follow_redirects=False)
    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/health", "/ready", "/ping", "/ready/"])
def test_probes_by_any_method_are_answered_as_get(client, router, path):
    """HEAD and OPTIONS tell the state too."""
    assert client.head(path).status_code == client.options(path).status_code == 200
    router.is_ready = False
    assert client.options(path).status_code == client.get(path).status_code


def test_a_packed_body_is_read_and_another_coding_named(client):
    """Gzip within the limit; br is 415 and says what is taken."""
    packed = gzip.compress(b'{"input": "a"}')
    headers = {"content-encoding": "gzip"}
    assert client.post("/v1/embeddings", content=packed, headers=headers).status_code == 200
    refused = client.post("/v1/embeddings", content=b"x", headers={"content-encoding": "br"})
    assert (refused.status_code, refused.json()["code"]) == (415, "INPUT_CODING_UNSUPPORTED")
    assert "'br'" in refused.json()["detail"]
    assert "gzip" in refused.headers["accept-encoding"]


class TestOrigins:
    """Pages of other origins."""

    PREFLIGHT: ClassVar = {
        "origin": "https://app.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-priority",
    }

    def test_a_page_of_another_origin_is_refused_by_default(self, client):
        """No header lets a browser hand the answer to the page."""
        asked = client.options("/v1/embeddings", headers=self.PREFLIGHT)
        assert asked.status_code == 405
        answer = client.get("/v1/models", headers={"origin": "https://app.example"})
        assert not [x for x in (*asked.headers, *answer.headers) if x.startswith("access-control")]

    def test_a_page_of_an_allowed_origin_may_call(self, router):
        """The preflight, the answer with its headers, errors too; another origin still may not."""
        config = AppConfig(cors={"allow_origins": ["https://app.example"]})
        app = ingress.http_app(config, lambda: router)
        with TestClient(app) as client:
            asked = client.options("/v1/embeddings", headers=self.PREFLIGHT)
            assert asked.status_code == 200
            assert "authorization" in asked.headers["access-control-allow-headers"]
            own = {"origin": "https://app.example"}
            for body in ({"input": "a"}, {}):
                answer = client.post("/v1/embeddings", json=body, headers=own)
                assert answer.headers["access-control-allow-origin"] == "https://app.example"
            assert "x-embedding-fingerprint" in answer.headers["access-control-expose-headers"]
            other = self.PREFLIGHT | {"origin": "https://other.example"}
            assert client.options("/v1/embeddings", headers=other).status_code == 400

    @pytest.mark.parametrize("origin", ["app.example", "https://app.example/", "https://"])
    def test_what_is_no_origin_is_refused_at_the_start(self, origin):
        """An origin has a scheme and no path; otherwise no browser's header would be equal."""
        with pytest.raises(ValidationError):
            AppConfig(cors={"allow_origins": [origin]})


@pytest.mark.parametrize(
    "settings", [{"api_keys_file": "/nowhere/keys.yaml"}, {"api_keys_variable": "NOT_SET_ANYWHERE"}]
)
def test_a_router_that_cannot_read_its_keys_does_not_start(router, settings):
    """It would refuse every request, while `/ready` said yes."""
    with pytest.raises(ServiceError, match=r"keys.yaml|NOT_SET_ANYWHERE"):
        ingress.http_app(AppConfig.model_validate(settings), lambda: router)


class TestKeys:
    """Where keys are asked for."""

    @pytest.fixture
    def config(self, tmp_path) -> AppConfig:
        path = tmp_path / "keys.yaml"
        path.write_text(
            f"[{{name: jobs, sha256: {digest_of('k')}, lane: bulk, max_items_per_request: 2}}]"
        )
        return AppConfig(api_keys_file=str(path))

    def test_only_callers_with_a_key_reach_the_router(self, client, router):
        """Without one: 401, how to send it, and the body is not even read."""
        refused = client.post("/v1/embeddings", content=b"{")
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert client.get("/v1/models").status_code == 401
        assert router.asked == []
        azure = client.get("/v1/models", headers={"api-key": "k"})
        wrong = client.get("/v1/models", headers={"api-key": "other"})
        assert (azure.status_code, wrong.status_code) == (200, 401)
        assert client.get("/openapi.json").json()["security"] == [{"key": []}, {"azure": []}]

    def test_a_key_has_its_lane_and_its_limits(self, client, router):
        """A key of the bulk lane stays in it whatever the request says."""
        headers = {"authorization": "Bearer k", "x-priority": "interactive"}
        good = client.post("/v1/embeddings", json={"input": ["a", "b"]}, headers=headers)
        assert good.status_code == 200
        assert router.asked[0][5] == "bulk"
        for path in ("/v1/embeddings", "/v1/classify"):
            many = {"input": ["a"] * 3, "labels": ["b", "c"]}
            assert client.post(path, json=many, headers=headers).status_code == 413
        assert router.metrics.refused == ["RequestTooLargeError"] * 2
