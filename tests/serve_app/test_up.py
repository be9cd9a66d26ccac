"""`jina-clip-serve up` as a user runs it: HAProxy ingress, answers, a clean stop."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from serve_app.server import free_port


def test_up_serves_through_haproxy_with_keys_and_stops_on_sigterm():
    """It says how it listens, wants the key, answers, and exits 0 when asked to stop."""
    port = free_port()
    program = Path(sys.executable).parent / "jina-clip-serve"
    settings = ["api_keys=[secret]", "text.num_cpus=0.5", "router.num_cpus=0.5"]
    settings.append("router.num_replicas=2")
    environment = os.environ | {
        name: str(free_port())
        for name in ("RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT")
    }
    process = subprocess.Popen(
        [program, "up", "--port", str(port), *settings],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    watchdog = threading.Timer(200, process.kill)
    watchdog.start()
    try:
        said = read_until(process, "Ready")
        assert "HAProxy listens on every address" in said
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            assert client.get("/ready").status_code == 200
            body = {"input": ["hello"]}
            assert client.post("/v1/embeddings", json=body).status_code == 401
            client.headers["authorization"] = "Bearer secret"
            assert client.post("/v1/embeddings", json=body).status_code == 200
            assert client.post("/v1/embeddings", content=bytes(50_000_000)).status_code == 413
            assert_only_requests_in_flight_fail_when_a_router_is_killed(client, process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=90) == 0
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


def assert_only_requests_in_flight_fail_when_a_router_is_killed(
    client: httpx.Client, parent: int
) -> None:
    """Of many requests at least one and at most the four under way end in a connection error."""
    ended: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                answer = client.post("/v1/embeddings", json={"input": ["word " * 500]})
                ended.append(answer.status_code)
            except httpx.TransportError:
                ended.append(0)

    with ThreadPoolExecutor(4) as callers:
        for _ in range(4):
            callers.submit(ask)
        while len(ended) < 20:
            time.sleep(0.05)
        os.kill(router_pid(parent), signal.SIGKILL)
        before = len(ended)
        while len(ended) < before + 60:
            time.sleep(0.05)
        stop.set()
    failed = [status for status in ended if status != 200]
    assert len(failed) <= 4, failed
    assert set(failed) <= {0, 500, 502, 503}


def router_pid(ancestor: int) -> int:
    """Return one of the Router replicas among the descendants of a process."""
    listing = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,args="], check=True, capture_output=True, text=True
    ).stdout
    rows = [line.split(maxsplit=2) for line in listing.splitlines()]
    parent_of = {int(pid): int(parent) for pid, parent, *_ in rows}

    def descends(pid: int) -> bool:
        while pid in parent_of and pid != ancestor:
            pid = parent_of[pid]
        return pid == ancestor

    names = ((int(row[0]), row[2]) for row in rows if len(row) == 3)
    return next(pid for pid, name in names if "embeddings:Router" in name and descends(pid))


def read_until(process: subprocess.Popen[str], word: str) -> str:
    """Collect the process's messages up to the line with a word."""
    lines: list[str] = []
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        if word in line:
            return " ".join("".join(lines).split())
    raise AssertionError("".join(lines))
