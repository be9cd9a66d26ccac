"""The servers that benchmarks send to: the service, and a baseline to compare it with."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deployments.config import AppConfig
from serve_app.listening import (
    HAPROXY_PORTS,
    LOOPBACK,
    SETTINGS,
    Ingress,
    free_port,
    prepare_environment,
)
from serve_app.server import running
from serve_app.settings import CORES_PER_ROUTER, read_config

ROOT = Path(__file__).parents[2]
SINGLE_GPU = ROOT / "serve_app" / "configs" / "single_gpu.yaml"
READY_S = 300
Proxy = Literal["direct", "haproxy", "stock"]


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
def service(
    config: AppConfig,
    proxy: Proxy = "haproxy",
    towers: Callable[[], AbstractContextManager[None]] = nullcontext,
    keeps_rows: bool = False,
) -> Iterator[str]:
    """Run the service on loopback, by default without its cache of rows; yields its URL.

    `towers` puts others in the place of the real ones, once Ray may be imported.

    The generator sends the same texts again in the next run: with a cache, only the first run
    would reach the towers.
    """
    if not keeps_rows:
        router = config.router.model_copy(update={"cache_bytes": 0})
        config = config.model_copy(update={"router": router})
    with ray_folder():
        ingress = new_ingress(proxy)
        with towers(), running(config, ingress) as url:
            stop_on_sigterm()
            yield url


@contextmanager
def paced_towers(ready: bool = False) -> Iterator[None]:
    """Let the service have towers that only keep time, or whose answers are ready."""
    from benchmarks.harness import paced  # brings Ray, which reads its settings then

    with paced.towers(ready):
        yield


def new_ingress(proxy: Proxy) -> Ingress:
    """Choose free ports, and set what Ray Serve reads when it is imported.

    Raises:
        RuntimeError: it is imported already, and would run with other settings than a user's.
    """
    if "ray.serve" in sys.modules and not SETTINGS.keys() <= os.environ.keys():
        raise RuntimeError("Ray Serve is imported before its settings are known")
    for variable in HAPROXY_PORTS:
        os.environ[variable] = str(free_port())
    ingress = Ingress(proxy, LOOPBACK, free_port())
    prepare_environment(ingress)
    return ingress


@contextmanager
def ray_folder() -> Iterator[Path]:
    """Keep Ray's files in a folder of their own until the block ends; its path is short.

    What Ray prints meanwhile, of killed processes for instance, goes to stderr: stdout is for
    results.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    os.environ["RAY_TMPDIR"] = str(folder)
    try:
        with redirect_stdout(sys.stderr):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def stop_on_sigterm() -> None:
    """End as on Ctrl-C, so that nothing is left behind; Ray has set a handler of its own."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


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
