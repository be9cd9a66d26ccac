"""A batch goes on when a part of the running service is killed in the middle of it."""

import json
from collections.abc import Iterator
from contextlib import suppress

import httpx
import numpy as np
import pytest

from benchmarks.harness.processes import is_alive, of_kind
from tests.serve_app.started import Up, started, wait_until

LINES = 1500
BEFORE = 40  # lines that are done when the part is killed
SETTINGS = ("text.num_cpus=0.25", "vision.enabled=false", "router.num_cpus=0.25")


@pytest.fixture(scope="module")
def up(tmp_path_factory) -> Iterator[Up]:
    """One Router, which answers itself and works off the batches; its own Ray."""
    folder = tmp_path_factory.mktemp("batches")
    with started([f"batches.folder={folder}", *SETTINGS]) as up:
        yield up


def begun(client: httpx.Client) -> str:
    """Begin a batch of one text a line; returns its path."""
    given = {"method": "POST", "url": "/v1/embeddings"}
    lines = [
        given | {"custom_id": f"r{number}", "body": {"input": [f"text {number}"]}}
        for number in range(LINES)
    ]
    data = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    form = {"file": ("in.jsonl", data)}
    file = client.post("/v1/files", files=form, data={"purpose": "batch"}).raise_for_status().json()
    asked = {"input_file_id": file["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
    return f"/v1/batches/{client.post('/v1/batches', json=asked).raise_for_status().json()['id']}"


@pytest.mark.parametrize("kind", ["controller", "Router"])
def test_every_line_is_answered_once_though_a_part_is_killed(up, kind):
    """Ray Serve's controller, and the Router that works the batch off; each comes back."""
    client, path = up.client, begun(up.client)

    def seen() -> dict:
        with suppress(httpx.TransportError):  # until the killed Router has a successor
            return client.get(path).raise_for_status().json()
        return {"status": "unknown"}

    wait_until(lambda: seen()["request_counts"]["completed"] >= BEFORE)
    (victim,) = of_kind(up.process.pid, kind)
    victim.kill()
    wait_until(lambda: not is_alive(victim))
    wait_until(lambda: seen()["status"] != "unknown")
    assert seen()["status"] == "in_progress"
    wait_until(lambda: bool(of_kind(up.process.pid, kind)), 120)
    wait_until(lambda: seen()["status"] == "completed", 240)
    done = seen()
    assert done["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
    output = client.get(f"/v1/files/{done['output_file_id']}/content").raise_for_status().text
    answers = [json.loads(line) for line in output.splitlines()]
    assert sorted(x["custom_id"] for x in answers) == sorted(f"r{x}" for x in range(LINES))
    rows = {x["custom_id"]: x["response"]["body"]["data"][0]["embedding"] for x in answers}
    numbers = range(0, LINES, 100)
    direct = up.post({"input": [f"text {number}" for number in numbers]}).raise_for_status().json()
    expected = [row["embedding"] for row in direct["data"]]
    np.testing.assert_allclose([rows[f"r{number}"] for number in numbers], expected, atol=1e-5)
