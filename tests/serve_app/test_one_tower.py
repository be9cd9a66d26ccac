"""Applications with one tower: the other modality is refused, their own works."""

import base64

import httpx
import pytest

from deployments.config import AppConfig


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
