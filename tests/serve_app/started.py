"""`jina-clip-serve up` in a process of its own, with its own Ray, as a user starts it."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.harness.processes import descendants
from serve_app.listening import free_port

LIMIT_S = 300  # after which the command is killed


@dataclass
class Up:
    """The running command, a client, what it said, and the folder of Ray Serve's logs."""

    process: subprocess.Popen[str]
    client: httpx.Client
    said: str
    logs: Path

    def post(self, body: dict[str, Any], **headers: str) -> httpx.Response:
        return self.client.post("/v1/embeddings", json=body, headers=headers)

    def ports(self) -> set[int]:
        """Return the TCP ports that its processes listen on."""
        processes = {process.pid for process in descendants(self.process.pid)}
        held = psutil.net_connections("tcp")
        return {place.laddr.port for place in held if place.pid in processes and not place.raddr}


@contextmanager
def started(options: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[Up]:
    """Start it on a free port, yield it once it is ready, kill what is left of it after."""
    port, folder = free_port(), Path(tempfile.mkdtemp(prefix="up-"))
    process = subprocess.Popen(
        [Path(sys.executable).parent / "jina-clip-serve", "up", "--port", str(port), *options],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | (environment or {}) | {"RAY_TMPDIR": str(folder)},
    )
    watchdog = threading.Timer(LIMIT_S, process.kill)
    watchdog.start()
    try:
        said = read_until(process, "Ready")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=150) as client:
            logs = folder / "ray" / "session_latest" / "logs" / "serve"
            yield Up(process, client, said, logs)
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()
        shutil.rmtree(folder, ignore_errors=True)


def read_until(process: subprocess.Popen[str], word: str) -> str:
    """Collect the process's messages up to the line with a word."""
    lines: list[str] = []
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        if word in line:
            return " ".join("".join(lines).split())
    raise AssertionError("".join(lines))


def wait_until(condition: Callable[[], bool], limit_s: float = 60) -> None:
    """Wait for something that is sure to come; fail where it does not."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
