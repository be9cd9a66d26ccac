"""Applications with one tower: the other modality is refused, their own works."""

import base64
import hashlib

import httpx
import pytest

from deployments.config import AppConfig
from deployments.errors import ServiceError


@pytest.fixture(scope="module")
def deploy(service):
    """Deploy further applications beside the session's own."""
    from ray import serve

    from serve_app.app import build_app

    names = []

    def deploy(name: str, settings: dict) -> httpx.Client:
        config = AppConfig.model_validate(settings | {"router": {"num_cpus": 0.1}})
        serve.run(build_app(config), name=name, route_prefix=f"/{name}")
        names.append(name)
        return httpx.Client(base_url=f"{service.url}/{name}", timeout=60)

    yield deploy
    for name in names:
        serve.delete(name)


def test_text_only_and_image_only_applications_work(deploy, bear):
    """Each embeds its own modality, refuses the other with a 400 that says why, and is ready."""
    picture = {"image": base64.b64encode(bear).decode()}
    cases = [
        ("text-only", {"text": {"num_cpus": 0.1}, "vision": {"enabled": False}}, "bear", picture),
        ("image-only", {"text": {"enabled": False}, "vision": {"num_cpus": 0.1}}, picture, "bear"),
    ]
    for name, settings, own, other in cases:
        with deploy(name, settings) as client:
            assert client.get("/ready").status_code == 200
            good = client.post("/v1/embeddings", json={"input": [own]})
            bad = client.post("/v1/embeddings", json={"input": [own, other]})
        assert len(good.json()["data"][0]["embedding"]) == 192
        assert bad.status_code == 400
        assert "tower" in bad.json()["detail"]


def test_keys_are_asked_for_where_they_are_set(deploy):
    """No key, a wrong one and a wrong scheme get 401; the right one is served."""
    settings = {"api_keys": ["one", "two"], "text": {"num_cpus": 0.1}, "vision": {"enabled": False}}
    with deploy("with-keys", settings) as client:
        for header, status in (
            (None, 401),
            ("Bearer three", 401),
            ("Basic two", 401),
            ("Bearer two", 200),
        ):
            headers = {"authorization": header} if header else {}
            answer = client.post("/v1/embeddings", json={"input": ["a"]}, headers=headers)
            assert answer.status_code == status
            assert "two" not in answer.text or status == 200
        assert client.get("/health").status_code == 200


def test_a_key_of_the_file_has_its_own_limits(deploy, tmp_path):
    """Its items and its requests a minute are bounded; the answers say so in their codes."""
    path = tmp_path / "keys.yaml"
    digest = hashlib.sha256(b"one").hexdigest()
    path.write_text(
        f"[{{name: a, sha256: {digest}, max_items_per_request: 2, requests_per_minute: 2}}]"
    )
    towers = {"text": {"num_cpus": 0.1}, "vision": {"enabled": False}}
    with deploy("with-limits", {"api_keys_file": str(path)} | towers) as client:

        def ask(items: list[str]) -> httpx.Response:
            headers = {"authorization": "Bearer one"}
            return client.post("/v1/embeddings", json={"input": items}, headers=headers)

        assert client.post("/v1/embeddings", json={"input": ["a"]}).json()["code"] == (
            "AUTH_MISSING_API_KEY"
        )
        assert ask(["a"] * 3).status_code == 413
        assert [ask(["a"]).status_code for _ in range(3)] == [200, 200, 429]
        late = ask(["a"])
        assert late.json()["code"] == "RATE_REQUEST_LIMIT_EXCEEDED"
        assert 0 < int(late.headers["retry-after"]) <= 30
        assert client.get("/openapi.json").json()["security"] == [{"key": []}, {"azure": []}]


def test_keys_that_a_router_cannot_read_end_the_deployment(service):
    """It fails by name, where `/ready` would say yes and every request would get 500."""
    from ray import serve

    from serve_app.launch import launch

    text = {"num_cpus": 0.1, "scaling": {"max_replicas": 1}}
    settings = {"api_keys_file": "/nowhere/keys.yaml", "vision": {"enabled": False}, "text": text}
    config = AppConfig.model_validate(settings | {"router": {"num_cpus": 0.1}})
    with pytest.raises(ServiceError, match=r"Router: .*keys.yaml cannot be used"):
        launch(config, "no-keys", "/no-keys")
    serve.delete("no-keys")
