"""`jina-clip-serve up` as a user runs it: HAProxy ingress, answers, a clean stop."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx

from serve_app.server import free_port


def test_up_serves_through_haproxy_with_keys_and_stops_on_sigterm():
    """It says how it listens, wants the key, answers, and exits 0 when asked to stop."""
    port = free_port()
    program = Path(sys.executable).parent / "jina-clip-serve"
    settings = ["api_keys=[secret]", "text.num_cpus=0.5", "router.num_cpus=0.5"]
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
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=90) == 0
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], word: str) -> str:
    """Collect the process's messages up to the line with a word."""
    lines: list[str] = []
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        if word in line:
            return " ".join("".join(lines).split())
    raise AssertionError("".join(lines))
