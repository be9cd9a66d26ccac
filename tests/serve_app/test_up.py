"""`jina-clip-serve up` as a user runs it: HAProxy ingress, answers, spans, logs, a clean stop."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.harness.processes import descendants, is_alive, of_kind
from serve_app.listening import free_port
from tests.serve_app.second_network import needs_namespaces, network, seen_from
from tests.serve_app.started import Up, started, wait_until

SETTINGS = (
    "api_keys=[secret]",
    "text.num_cpus=0.5",
    "router.num_cpus=0.5",
    "router.cache_bytes=0",  # every text reaches the tower
    "router.num_replicas=2",
    "router.timeout_s=150",
    "log_format=json",
)
BODY = {"input": ["hello"]}


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    """Two Routers behind HAProxy, every request traced, logs in JSON; its own Ray."""
    environment = {
        name: str(free_port())
        for name in ("RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT")
    }
    with started(["--trace", "1", *SETTINGS], environment) as up:
        up.client.headers["authorization"] = "Bearer secret"
        yield up


def test_it_serves_through_haproxy_with_keys(up):
    """It says how it listens, wants the key, answers, and refuses too large a body."""
    assert "Listening on every address, through HAProxy" in up.said
    assert up.client.get("/ready").status_code == 200
    assert up.post(BODY, authorization="Bearer other").status_code == 401
    assert up.post(BODY).status_code == 200
    answer = up.client.post("/v1/embeddings", content=bytes(50_000_000))
    assert answer.status_code == 413


def test_the_spans_of_ingress_and_tower_belong_to_the_callers_trace(up):
    """One trace, the caller's, goes through the processes of the Router and of the tower."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    assert up.post(BODY, traceparent=f"00-{trace}-b7ad6b7169203331-01").status_code == 200

    def traced() -> set[str]:
        return {name for name, of in spans(up.logs) if of == f"0x{trace}"}

    for process in ("TextTower", "Router"):  # each writes its spans in its own time
        wait_until(lambda process=process: any(process in name for name in traced()))
    assert len({of for _, of in spans(up.logs)}) > 1  # other requests have traces of their own


def test_a_refusal_is_a_line_of_json_with_the_requests_id_and_nothing_of_its_text(up):
    """The id in the answer's header finds the line; what was sent stands in no log."""
    refused = up.post({"input": ["a private sentence"], "dimensions": 7_000_001})
    assert refused.status_code == 422
    wanted = refused.headers["x-request-id"]

    def lines() -> list[dict[str, Any]]:
        texts = "".join(path.read_text() for path in up.logs.glob("replica_*Router*.log"))
        return [json.loads(line) for line in texts.splitlines()]

    wait_until(lambda: any(line.get("request_id") == wanted for line in lines()))
    (line,) = [line for line in lines() if line.get("request_id") == wanted]
    assert (line["status"], line["code"]) == (422, "INPUT_OPTION_INVALID")
    everything = "".join(path.read_text() for path in up.logs.rglob("*") if path.is_file())
    assert wanted in everything
    for sent in ("private sentence", "7000001"):
        assert sent not in everything


@needs_namespaces
def test_another_machine_gets_http_and_numbers_and_nothing_else(up, tmp_path):
    """Without Ray's token nobody joins, calls a replica or has a pickle read; with it they do."""
    http_port = up.client.base_url.port
    ours = up.ports()
    token = (Path.home() / ".ray" / "auth_token").read_text()
    with network() as name:
        outside = {port: seen for port, seen in seen_from(name, tmp_path).items() if port in ours}
        assert not (tmp_path / "marker").exists()
        inside = seen_from(name, tmp_path, token)
        assert (tmp_path / "marker").exists()  # the call is one that a replica would have taken
    served = outside.pop(http_port)["http"]
    assert served["GET /"][0] == 200
    assert not any(200 <= served[job][0] < 300 for job in served if "jobs" in job)
    statuses = {status for seen in outside.values() for status in seen["grpc"].values()}
    assert statuses == {"UNAUTHENTICATED", "UNIMPLEMENTED"}
    assert "OK" in {status for seen in inside.values() for status in seen["grpc"].values()}
    for port, seen in outside.items():
        for asked, (status, text) in seen["http"].items():
            metrics = status == 200 and text.startswith("# HELP")
            assert metrics or status in (401, 403, 404, 405), (port, asked, status, text[:200])
            assert token not in text
            assert "secret" not in text


def test_only_requests_in_flight_fail_when_a_router_is_killed(up):
    """Of many requests at least one and at most the four under way end in a connection error."""
    ended: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                ended.append(up.post({"input": ["word " * 500]}).status_code)
            except httpx.TransportError:
                ended.append(0)

    with ThreadPoolExecutor(4) as callers:
        for _ in range(4):
            callers.submit(ask)
        wait_until(lambda: len(ended) >= 20)
        of_kind(up.process.pid, "Router")[0].kill()
        before = len(ended)
        wait_until(lambda: len(ended) >= before + 60)
        stop.set()
    failed = [status for status in ended if status != 200]
    assert len(failed) <= 4, failed
    assert set(failed) <= {0, 500, 502, 503}


def test_sigterm_finishes_what_is_under_way_refuses_the_rest_and_leaves_nothing(up):
    """A long request gets its rows, a later one a 503; the code is 0, and no process is left."""
    long = {"input": [f"text number {n} " * 20 for n in range(800)], "dimensions": 8}
    below = descendants(up.process.pid)
    with ThreadPoolExecutor(1) as caller:
        under_way = caller.submit(up.post, long)
        time.sleep(0.5)  # it is with the towers by now
        up.process.send_signal(signal.SIGTERM)
        wait_until(lambda: up.post(BODY).status_code == 503)
        assert not under_way.done()  # or nothing is shown here
        assert len(under_way.result().json()["data"]) == 800
    assert up.process.wait(timeout=60) == 0
    assert len(below) > 5
    wait_until(lambda: not any(map(is_alive, below)))


def spans(logs: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the trace of each span written so far."""
    decoder = json.JSONDecoder()
    for path in (logs / "spans").glob("*"):
        text = path.read_text().lstrip()
        while text:
            try:
                span, end = decoder.raw_decode(text)
            except ValueError:  # half written
                break
            yield span["name"], span["context"]["trace_id"]
            text = text[end:].lstrip()
