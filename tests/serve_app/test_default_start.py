"""`jina-clip-serve up` without an option: one Router that answers itself, on this machine only."""

import json
import signal
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from openai import OpenAI

from benchmarks.harness.processes import descendants, is_alive, of_kind
from tests.serve_app.second_network import needs_namespaces, network, seen_from
from tests.serve_app.started import Up, started, wait_until

BODY = {"input": ["hello"]}
LINES = 1000


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    with started(["text.num_cpus=0.5", "vision.num_cpus=0.5", "router.num_cpus=0.5"]) as up:
        yield up


def test_it_says_how_it_listens_and_answers(up):
    """Every offer of another protocol is passed over, and the body arrives whole."""
    assert "Listening on this machine only; the one Router answers itself" in up.said
    assert up.client.get("/ready").status_code == 200
    offers = {"Upgrade": "h2c", "Connection": "Upgrade, HTTP2-Settings", "HTTP2-Settings": "AAMAAA"}
    answers = [up.post(BODY), up.post(BODY, **offers)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json()["data"] == answers[1].json()["data"]


@needs_namespaces
def test_another_machine_gets_no_http_and_nothing_of_ray(up, tmp_path):
    """Only metrics answer without Ray's token."""
    port = up.client.base_url.port
    with network() as name:
        seen = seen_from(name, tmp_path)
    assert port in up.ports()
    assert port not in seen
    outside = [seen[port] for port in up.ports() & seen.keys()]
    assert {status for one in outside for status in one["grpc"].values()} == {
        "UNAUTHENTICATED",
        "UNIMPLEMENTED",
    }
    answers = [answer for one in outside for answer in one["http"].values()]
    assert all(status in (401, 405) or text.startswith("# HELP") for status, text in answers)
    assert not (tmp_path / "marker").exists()


def test_a_killed_router_comes_back_on_its_port(up):
    """Connections are refused until then."""
    of_kind(up.process.pid, "Router")[0].kill()

    def answers() -> bool:
        try:
            return up.post(BODY).status_code == 200
        except httpx.TransportError:
            return False

    wait_until(lambda: not answers())
    wait_until(answers)


@pytest.mark.parametrize("kind", ["controller", "Router"])
def test_a_batch_goes_on_though_a_part_is_killed(up, kind):
    """By the official client: every line is answered once, as POST /v1/embeddings answers it.

    Ray Serve's controller, and the Router that works the batch off; each comes back.
    """
    bodies = {f"r{number}": {"input": [f"{kind} {number}"] * 3} for number in range(LINES)}
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/embeddings", "body": body}
        for name, body in bodies.items()
    ]
    client = OpenAI(api_key="any", base_url=f"{up.client.base_url}/v1", max_retries=20)
    data = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
    )

    def completed() -> int:
        now = client.batches.retrieve(batch.id)
        assert now.status in ("validating", "in_progress", "finalizing", "completed")
        assert now.request_counts is not None
        return now.request_counts.completed

    wait_until(lambda: completed() > 0.1 * LINES)
    (victim,) = of_kind(up.process.pid, kind)
    victim.kill()
    wait_until(lambda: not is_alive(victim))
    assert client.batches.retrieve(batch.id).status == "in_progress"
    wait_until(lambda: bool(of_kind(up.process.pid, kind)), 120)
    wait_until(lambda: client.batches.retrieve(batch.id).status == "completed", 240)
    done = client.batches.retrieve(batch.id)
    assert done.request_counts is not None
    assert done.request_counts.to_dict() == {"total": LINES, "completed": LINES, "failed": 0}
    assert done.output_file_id is not None
    found = [json.loads(x) for x in client.files.content(done.output_file_id).text.splitlines()]
    assert sorted(x["custom_id"] for x in found) == sorted(bodies)
    for answer in found[:: LINES // 5]:
        direct = up.post(bodies[answer["custom_id"]]).json()
        rows = [
            [row["embedding"] for row in body["data"]]
            for body in (answer["response"]["body"], direct)
        ]
        np.testing.assert_allclose(*rows, atol=1e-5)


def test_ctrl_c_ends_it_with_code_0_and_leaves_no_process(up):
    """The kernel's signal is that of a terminal; nothing of Ray's end is shown."""
    below = descendants(up.process.pid)
    up.process.send_signal(signal.SIGINT)
    _, said = up.process.communicate(timeout=60)
    assert up.process.returncode == 0
    assert said.startswith("Stopping: requests under way are finished")
    assert "Traceback" not in said
    assert len(below) > 5
    wait_until(lambda: not any(map(is_alive, below)))
