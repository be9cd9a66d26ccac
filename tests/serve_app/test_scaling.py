"""Replicas follow the work of each tower, on a real Ray Serve."""

import base64
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from deployments.config import AppConfig
from serve_app.gallery import FOLDER, gallery_images
from tests.serve_app.deployed import deployed

NAME = "scaled"
TOWER = {"num_cpus": 0.1, "scaling": {"min_replicas": 1, "max_replicas": 3, "downscale_delay_s": 1}}
CONFIG = AppConfig.model_validate(
    {
        "text": TOWER | {"max_batch_tokens": 4096},
        "vision": TOWER | {"max_batch_images": 4},
        "router": {"num_cpus": 0.1, "max_images_per_chunk": 4, "max_chunks_in_flight": 4},
        # Outstanding work decides, and a start-up is taken to be short, so that the test is.
        "targets": {"target_images_per_replica": 12, "target_delay_s": 0},
        "policy": {"startup_s": 3},
    }
)


@pytest.fixture(scope="module")
def scaled(service) -> Iterator[httpx.Client]:
    with deployed(service, CONFIG, NAME) as client:
        yield client


def replicas() -> dict[str, int]:
    """Return the running replicas of each tower."""
    from ray import serve

    deployments = serve.status().applications[NAME].deployments
    return {name: state.replica_states.get("RUNNING", 0) for name, state in deployments.items()}


def wait_for(condition: Callable[[dict[str, int]], bool], timeout_s: float) -> dict[str, int]:
    """Wait for the replicas to be as wanted, and return them."""
    end = time.monotonic() + timeout_s
    while not condition(seen := replicas()):
        assert time.monotonic() < end, f"replicas are {seen}, load {os.getloadavg()}"
        time.sleep(0.2)
    return seen


def test_a_burst_of_images_scales_the_vision_tower_alone(scaled):
    """Under images VisionTower grows while TextTower stays at one; every request is answered."""
    files = [(FOLDER / p.file).read_bytes() for p in gallery_images()]

    def ask(number: int) -> httpx.Response:
        """Send pictures that no other request sends: the same ones are computed only once."""
        images = [base64.b64encode(file + b"%d" % number).decode() for file in files]
        body = {"input": [{"image": image} for image in images], "embedding_type": "base64"}
        return scaled.post("/v1/embeddings", json=body)

    with ThreadPoolExecutor(4) as callers:
        answers = [callers.submit(ask, number) for number in range(16)]
        grown = wait_for(lambda seen: seen["VisionTower"] >= 2, 60)
        assert grown["TextTower"] == 1
        assert [answer.result().status_code for answer in answers] == [200] * 16


def test_the_targets_change_without_a_restart(scaled, service):
    """A new `user_config` of the Router reaches the policy and keeps every replica."""
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    from serve_app.launch import spec

    wait_for(lambda seen: seen["TextTower"] == 1 and seen["Router"] == 1, 60)
    before = replica_ids()
    application = spec(CONFIG, NAME, f"/{NAME}")
    targets = CONFIG.targets.model_dump() | {"target_images_per_replica": 500}
    application["deployments"] = [{"name": "Router", "user_config": targets}]
    schema = ServeDeploySchema.model_validate({"applications": [application]})
    _get_global_client().deploy_apps(schema)
    end = time.monotonic() + 30
    stats = {}
    while stats.get("target_images_per_replica") != 500:
        assert time.monotonic() < end, stats
        time.sleep(0.2)
        handle = serve.get_app_handle(NAME)
        stats = handle.record_autoscaling_stats.remote().result()
    assert replica_ids()["Router"] == before["Router"]
    assert replica_ids()["TextTower"] == before["TextTower"]


def replica_ids() -> dict[str, set[str]]:
    """Return the names of the actors behind each deployment; a restart gives another name."""
    import ray

    found: dict[str, set[str]] = {}
    for actor in ray.util.list_named_actors(all_namespaces=True):
        parts = actor["name"].split("#")
        if len(parts) == 3 and parts[0].endswith(f"::{NAME}"):
            found.setdefault(parts[1], set()).add(parts[2])
    return found
