"""A tower without replicas, as it may be, on a real Ray Serve."""

import base64
import time
from collections.abc import Iterator

import httpx
import pytest

from deployments.config import AppConfig
from serve_app.gallery import FOLDER
from tests.serve_app.deployed import deployed

NAME = "sleeping"
SLEEPY = {"num_cpus": 0.1, "scaling": {"min_replicas": 0, "max_replicas": 1}}
CONFIG = AppConfig.model_validate(
    {
        "text": SLEEPY,
        "vision": {"enabled": False},
        "router": {"num_cpus": 0.1},
        "targets": {"scale_to_zero": True},
    }
)


@pytest.fixture(scope="module")
def sleeping(service) -> Iterator[httpx.Client]:
    with deployed(service, CONFIG, NAME) as client:
        yield client


def states() -> dict[str, int]:
    """Return the replicas of the text tower by state."""
    from ray import serve

    states = serve.status().applications[NAME].deployments["TextTower"].replica_states
    return {str(state): count for state, count in states.items() if count}


def test_a_sleeping_service_is_ready_and_wakes_for_a_request(sleeping):
    """Probes leave it asleep, and what they promise holds: the request is answered."""
    for path in ("/ready", "/ping", "/v1/models"):
        assert sleeping.get(path).status_code == 200
    time.sleep(1)  # a replica that was asked for would be starting
    assert states() == {}
    assert sleeping.post("/v1/embeddings", json={"input": ["a"]}).status_code == 200
    assert states() == {"RUNNING": 1}
    assert sleeping.get("/ready").status_code == 200


def test_one_tower_sleeps_while_the_other_serves_and_says_when_it_will_be_there(service):
    """Texts are answered; the first image is 503 with the time of a start, and a later one is."""
    refusing = CONFIG.model_dump() | {
        "text": {"num_cpus": 0.1},
        "vision": SLEEPY,
        "router": {"num_cpus": 0.1, "asleep": "refuse"},
        "policy": {"startup_s": 7},
    }
    image = base64.b64encode((FOLDER / "bear.png").read_bytes()).decode()
    with deployed(service, AppConfig.model_validate(refusing), "refusing") as client:
        assert client.post("/v1/embeddings", json={"input": ["a"]}).status_code == 200
        first = client.post("/v1/embeddings", json={"input": [{"image": image}]})
        assert (first.status_code, first.headers["retry-after"]) == (503, "7")
        assert "the vision tower sleeps" in first.json()["detail"]
        assert client.get("/ready").status_code == 200
        end_s = time.monotonic() + 60
        while client.post("/v1/embeddings", json={"input": [{"image": image}]}).status_code == 503:
            assert client.post("/v1/embeddings", json={"input": ["a"]}).status_code == 200
            assert time.monotonic() < end_s
            time.sleep(1)
        assert client.post("/v1/embeddings", json={"input": [{"image": image}]}).status_code == 200
