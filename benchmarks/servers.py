"""The servers that `benchmarks.serve` compares, and the generator that sends to them."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.processes import cpu_s
from deployments.config import AppConfig
from serve_app.server import LOOPBACK, Ingress, free_port, prepare_environment, running

CALLERS = 8
CONFIG = AppConfig.model_validate({"text": {"num_cpus": 1}, "vision": {"num_cpus": 1}})
# For texts alone: all cores for their tower, as the baseline's torch has them.
TEXTS = AppConfig.model_validate({"text": {"num_cpus": os.cpu_count()}})


@contextmanager
def service(config: AppConfig = CONFIG) -> Iterator[str]:
    """Run the service with the HAProxy ingress on loopback; yields its URL."""
    ingress = Ingress("haproxy", LOOPBACK, free_port())
    prepare_environment(ingress)
    with running(config, ingress) as url:
        yield url


@contextmanager
def baseline_server() -> Iterator[str]:
    """Run the baseline server in a process of its own; yields its URL once it answers."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.baseline_server", "--port", str(port)]
    url, process = f"http://{LOOPBACK}:{port}", subprocess.Popen(command)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}/ready", timeout=1)
                break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def send(url: str, mix: str, seconds: float, *options: str) -> dict[str, Any]:
    """Run the generator in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.load", "--url", url, "--mix", mix]
    command += ["--seconds", str(seconds), *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def send_counting(
    url: str, mix: str, seconds: float, *options: str
) -> tuple[dict[str, Any], dict[str, float]]:
    """Run the generator; return its result and the processor milliseconds per request, by kind."""
    before = cpu_s(os.getpid())
    result = send(url, mix, seconds, *options)
    after = cpu_s(os.getpid())
    requests = max(1, sum(result["outcomes"].values()))
    kinds = before.keys() & after.keys()
    return result, {kind: 1e3 * (after[kind] - before[kind]) / requests for kind in kinds}
