"""The servers that `benchmarks.serve` compares, and the generator that sends to them."""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import random_checkpoint
from benchmarks.harness.processes import cpu_s
from deployments.config import AppConfig
from serve_app.server import LOOPBACK, Ingress, free_port, prepare_environment, running
from serve_app.settings import CORES_PER_ROUTER, read_config

SINGLE_GPU = Path(__file__).parents[2] / "serve_app" / "configs" / "single_gpu.yaml"
READY_S = 300


@dataclass(frozen=True)
class Setup:
    """One checkpoint on one device: how the service runs it, and how many callers fill it.

    Attributes:
        config: both towers; on a CPU with a core each.
        texts: for texts alone; on a CPU with all cores, as the baseline's torch has them.
        callers: of a closed loop.
    """

    config: AppConfig
    texts: AppConfig
    callers: int

    @classmethod
    def on(cls, device: str, source: str = "demo") -> "Setup":
        """Return the setup for `cpu`, or for `cuda`: the shipped configuration for one GPU."""
        cores = os.cpu_count() or 1
        if device == "cuda":
            routers = max(2, cores // CORES_PER_ROUTER)
            settings = f"model.source={source}", f"router.num_replicas={routers}"
            config = read_config(SINGLE_GPU, settings)
            return cls(config, config, callers=48)
        model = {"source": source, "device": device}
        both = {"model": model, "text": {"num_cpus": 1}, "vision": {"num_cpus": 1}}
        texts = {"model": model, "text": {"num_cpus": cores}}
        return cls(AppConfig.model_validate(both), AppConfig.model_validate(texts), callers=8)

    @property
    def options(self) -> list[str]:
        """Arguments that give another process the same device and weights."""
        return ["--device", self.config.model.device, "--source", self.config.model.source]


@contextmanager
def prepared(device: str, size: str) -> Iterator[Setup]:
    """Yield the setup of the shipped checkpoint, or of a random one of the published size."""
    with tempfile.TemporaryDirectory() as folder:
        if size == "full":
            random_checkpoint.write(Path(folder))
        yield Setup.on(device, folder if size == "full" else "demo")


@contextmanager
def service(config: AppConfig) -> Iterator[str]:
    """Run the service with the HAProxy ingress on loopback; yields its URL."""
    ingress = Ingress("haproxy", LOOPBACK, free_port())
    prepare_environment(ingress)
    with running(config, ingress) as url:
        yield url


@contextmanager
def baseline_server(setup: Setup) -> Iterator[str]:
    """Run the baseline server in a process of its own; yields its URL once it answers.

    Raises:
        RuntimeError: it does not.
    """
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.harness.baseline_server", "--port", str(port)]
    url, process = f"http://{LOOPBACK}:{port}", subprocess.Popen([*command, *setup.options])
    try:
        _wait_for(f"{url}/ready", process)
        yield url
    finally:
        process.terminate()
        process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    end_s = time.monotonic() + READY_S
    while time.monotonic() < end_s and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=1)
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"nothing answers at {url}; the server's status is {process.poll()}")


def send(url: str, mix: str, seconds: float, *options: str) -> dict[str, Any]:
    """Run the generator in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.harness.load", "--url", url, "--mix", mix]
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
