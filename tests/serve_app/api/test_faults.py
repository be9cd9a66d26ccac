"""Replicas are killed under load, and large and small requests share the service."""

import base64
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from deployments.config import AppConfig
from tests.serve_app.deployed import deployed

NAME = "faulty"
CONFIG = AppConfig.model_validate(
    {
        "text": {"num_cpus": 0.1},
        "vision": {"num_cpus": 0.1},
        # Every text reaches the tower; two long ones are all that may wait.
        "router": {"num_cpus": 0.1, "cache_bytes": 0, "max_queued_tokens": 6000},
    }
)


@pytest.fixture(scope="module")
def faulty(service) -> Iterator[httpx.Client]:
    with deployed(service, CONFIG, NAME) as client:
        yield client


def long_texts(count: int, words: int) -> list[str]:
    """Return texts of many words, no two alike: the same text is computed only once."""
    return [f"{number} " + "word " * words for number in range(count)]


def pid_of(deployment: str) -> int:
    """Return the process of the only replica of a deployment of this module's application."""
    command = ["pgrep", "-f", f"ServeReplica:{NAME}:{deployment}"]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(found[0])


@pytest.mark.parametrize("tower", ["TextTower", "VisionTower"])
def test_no_request_fails_when_a_tower_replica_is_killed(faulty, bear, tower):
    """Requests under way and new ones wait for the next replica; every one gets its rows."""
    body = {"input": ["red apple " * 50, {"image": base64.b64encode(bear).decode()}] * 4}
    stop = threading.Event()
    statuses: list[int] = []

    def ask() -> None:
        while not stop.is_set():
            statuses.append(faulty.post("/v1/embeddings", json=body).status_code)

    with ThreadPoolExecutor(4) as callers:
        asking = [callers.submit(ask) for _ in range(4)]
        while len(statuses) < 4:
            time.sleep(0.05)
        victim = pid_of(tower)
        os.kill(victim, signal.SIGKILL)
        before = len(statuses)
        while len(statuses) < before + 8:
            time.sleep(0.05)
        stop.set()
        for call in asking:
            call.result()
    assert set(statuses) == {200}
    assert pid_of(tower) != victim


def test_a_request_of_thousands_of_texts_lets_small_ones_in_between(service):
    """2,000 texts come back in order, and queries meanwhile are answered before them."""
    large = {"input": [f"text number {n}" for n in range(2000)], "dimensions": 8}
    with ThreadPoolExecutor(1) as caller:
        answer = caller.submit(service.post, large)
        answered = 0
        while not answer.done():
            query = f"small query {answered}"  # one that no cache knows
            assert service.post({"input": [query]}).status_code == 200
            answered += 1
        data = answer.result().json()["data"]
    assert len(data) == 2000
    assert answered >= 2
    assert data[1321]["embedding"] == pytest.approx(
        service.embed(["text number 1321"], dimensions=8)[0], abs=1e-5
    )


def test_a_request_of_800_images_works(service, bear):
    """Many images travel in chunks and come back complete."""
    images = [{"image": base64.b64encode(bear + b"%d" % n).decode()} for n in range(800)]
    assert len(service.embed(images, dimensions=8, embedding_type="base64")) == 800


def test_a_caller_short_of_time_gets_504_and_the_next_is_served(service):
    """A request that cannot be done in its own time limit, by body or header, ends with it."""
    body = {"input": long_texts(40, 4000)}
    by_field = service.post(body | {"timeout_s": 0.05})
    by_header = service.client.post("/v1/embeddings", json=body, headers={"x-timeout-s": "0.05"})
    for answer in (by_field, by_header):
        assert answer.status_code == 504
        assert answer.json()["code"] == "SERVICE_TIMEOUT"
    assert len(service.embed(["next"])) == 1


def test_a_lane_can_be_asked_for_and_a_wrong_one_is_refused(service):
    """`bulk` by field or header is served; anything else is a 422."""
    assert service.post({"input": ["a"], "priority": "bulk"}).status_code == 200
    for lane, status in (("bulk", 200), ("urgent", 422)):
        headers = {"x-priority": lane}
        answer = service.client.post("/v1/embeddings", json={"input": ["a"]}, headers=headers)
        assert answer.status_code == status


def test_over_the_budget_is_429_with_the_time_to_come_back(faulty):
    """A Router with a small budget refuses at once, and says when to come back."""
    bodies = [{"input": [text], "timeout_s": 50} for text in long_texts(24, 2500)]
    with ThreadPoolExecutor(8) as callers:
        calls = [callers.submit(faulty.post, "/v1/embeddings", json=body) for body in bodies]
        answers = [call.result() for call in calls]
    too_large = faulty.post("/v1/embeddings", json={"input": long_texts(3, 2500)})
    assert {answer.status_code for answer in answers} == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["type"] == "rate_limit_error"
    assert too_large.status_code == 413


def test_a_client_that_leaves_takes_its_queued_work_along(service):
    """After a disconnect the Router soon has nothing outstanding, long before it could be done."""
    body = {"input": long_texts(400, 2000), "dimensions": 8}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{service.url}/v1/embeddings", json=body, timeout=2)
    end = time.monotonic() + 10
    while outstanding(service) > 0:
        assert time.monotonic() < end, "work goes on for a caller who has left"
        time.sleep(0.1)
    assert len(service.embed(["next"])) == 1


def outstanding(service) -> float:
    stats = service.handle.record_autoscaling_stats.remote().result()
    return stats["text_tokens_outstanding"]
