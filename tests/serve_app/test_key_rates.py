"""The limits of an API key over two Routers, on a real Ray Serve."""

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import yaml

from deployments.config import AppConfig
from serve_app.api.leases import BOOKS

NAME = "rated"
PER_MINUTE = 60
AT_ONCE = 2


@pytest.fixture(scope="module")
def rated(service, tmp_path_factory):
    from ray import serve

    from serve_app.app import build_app

    path = tmp_path_factory.mktemp("keys") / "keys.yaml"
    limits = {
        "one": {"requests_per_minute": PER_MINUTE},
        "few": {"max_concurrent_requests": AT_ONCE},
    }
    entries = [
        {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), **limit}
        for name, limit in limits.items()
    ]
    path.write_text(yaml.safe_dump(entries))
    settings = {
        "api_keys_file": str(path),
        "text": {"num_cpus": 0.1},
        "vision": {"enabled": False},
        "router": {"num_cpus": 0.1, "num_replicas": 2},
    }
    serve.run(build_app(AppConfig.model_validate(settings)), name=NAME, route_prefix=f"/{NAME}")
    headers = {"authorization": "Bearer one"}
    with httpx.Client(base_url=f"{service.url}/{NAME}", headers=headers, timeout=60) as client:
        yield client
    serve.delete(NAME)


def send(client: httpx.Client, count: int) -> list[int]:
    """Return the status of each of so many requests, one after the other."""
    body = {"input": ["a bear"]}
    return [client.post("/v1/embeddings", json=body).status_code for _ in range(count)]


def books() -> str:
    """Return the name of the actor that keeps the rates."""
    import ray

    actors = ray.util.list_named_actors(all_namespaces=True)
    (name,) = (actor["name"] for actor in actors if BOOKS in actor["name"])
    return name


def test_two_routers_let_in_two_requests_at_once_and_not_two_each(rated):
    """Of twelve long ones at the same time two are answered; once they are, two more."""
    headers = {"authorization": "Bearer few"}

    def long_one(number: int) -> int:
        body = {"input": [f"{number} {text} " + "bear " * 300 for text in range(100)]}
        return rated.post("/v1/embeddings", json=body, headers=headers).status_code

    for first in (0, 100):
        with ThreadPoolExecutor(12) as pool:
            statuses = sorted(pool.map(long_one, range(first, first + 12)))
        assert statuses == [200] * AT_ONCE + [429] * (12 - AT_ONCE)
        time.sleep(1.5)


def test_two_routers_let_in_one_minute_s_requests_and_go_on_without_the_books(rated):
    """Of 120 sent at once 60 are let in, not 60 at each; with the actor dead some still are."""
    import ray

    start_s = time.monotonic()
    statuses = send(rated, 2 * PER_MINUTE)
    refilled = (time.monotonic() - start_s) * PER_MINUTE / 60
    assert set(statuses) == {200, 429}
    assert PER_MINUTE <= statuses.count(200) <= PER_MINUTE + refilled + 1
    name = books()
    ray.kill(ray.get_actor(name, namespace="serve"))
    end_s = time.monotonic() + 30
    while 200 not in (after := send(rated, 5)):
        assert set(after) == {429}, "a lost actor must not fail a request"
        assert time.monotonic() < end_s
    assert set(after) <= {200, 429}
