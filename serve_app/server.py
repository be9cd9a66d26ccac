"""Starts the application on this machine and stops it again; behind `up`, `demo` and the tests.

Ray reads its settings from the environment when it is imported: `listening.prepare_environment`
runs before, and this module imports Ray late.
"""

import logging
import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deployments.config import AppConfig
from deployments.errors import ServiceError
from deployments.model.errors import EmbeddingError
from deployments.model.weights.source import find
from serve_app.api.keys import KeyRing
from serve_app.batches.folder import folder_of
from serve_app.haproxy import BINARY_VARIABLE
from serve_app.listening import SLOW_START_S, Ingress, holder, needed_ports, port_is_free

POLL_S = 0.1
ANSWER_S = 10

# For replicas only: a program that uses a handle without an event loop needs Ray Serve's own.
# A request changes threads less where ours, the calls to the towers and HTTP share an event loop:
# 1 to 10% less processor time in the Router. Torch, decoding and large bodies have threads.
REPLICA_SETTINGS = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}


@contextmanager
def running(config: AppConfig, ingress: Ingress) -> Iterator[str]:
    """Start Ray and the application, yield its URL once it is ready, stop both after.

    Call `prepare_environment` first, before Ray is imported.

    Raises:
        EmbeddingError: it cannot start; says why and what to do.
    """
    require_startable(config, ingress)
    import ray
    from ray import serve

    from serve_app import launch

    log = logging.getLogger("ray.serve")
    log.setLevel(logging.WARNING)
    # A local cluster has as many CPUs as the replicas ask for: on a small machine they share.
    cpus = max(needed_cpus(config), os.cpu_count() or 1)
    with explained(), _for_replicas():
        ray.init(
            num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
        )
    try:
        with explained():
            with suppress(TimeoutError):  # Ray waits for its proxies for 60 s, and goes on
                serve.start(http_options=ingress.serve_options())
            _wait_for("Ray Serve's proxies", _proxies_are_up)
            launch.launch(config)
            _wait_for(f"{ingress.url}/ready", lambda: _is_ready(ingress.url))
        yield ingress.url
        launch.drain(config.router.timeout_s)
    finally:
        # Threads of Serve's handles go on, and would tell that there is no Ray any more.
        log.setLevel(logging.CRITICAL + 1)
        ray.shutdown()


@contextmanager
def explained() -> Iterator[None]:
    """Turn whatever Ray raises into one message.

    Raises:
        ServiceError: in place of what is not ours.
    """
    try:
        yield
    except EmbeddingError:
        raise
    except Exception as error:
        from serve_app.launch import last_line

        logs = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray/session_latest/logs")
        raise ServiceError(
            f"Ray did not start: {last_line(str(error)) or type(error).__name__}; try again when "
            f"the machine is less busy, `jina-clip-serve doctor` looks for causes, {logs} has "
            "Ray's logs"
        ) from error


def _wait_for(what: str, condition: Callable[[], bool], limit_s: float = SLOW_START_S) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end_s:
            raise TimeoutError(f"{what} did not answer within {limit_s:g} s")
        time.sleep(POLL_S)


def _proxies_are_up() -> bool:
    from ray import serve

    states = serve.status().proxies.values()
    return all(state.value == "HEALTHY" for state in states)


def _is_ready(url: str) -> bool:
    with suppress(OSError):  # refused, or answered with an error
        urllib.request.urlopen(f"{url}/ready", timeout=ANSWER_S).close()
        return True
    return False


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
        ServiceError: a port is taken, the keys cannot be read, the folder of batches cannot be
            written, or the GPUs that the configuration asks for are not here.
    """
    for host, port, purpose in needed_ports(ingress):
        if not port_is_free(host, port):
            raise ServiceError(
                f"port {port} ({purpose}) is taken on {host} by {holder(port)}; stop it, or choose "
                "another port"
            )
    program = os.environ.get(BINARY_VARIABLE, "")
    if ingress.proxy == "haproxy" and not os.access(program, os.X_OK):
        raise ServiceError(
            f"{program} is not there; install the package again (pip install --editable .)"
        )
    find(config.model.source, config.model.revision)
    KeyRing(config)
    folder_of(config)
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


def needed_gpus(config: AppConfig) -> float:
    """Return the GPUs that the first replicas reserve."""
    towers = [tower for tower in (config.text, config.vision) if tower.enabled]
    return sum(tower.least_replicas * tower.num_gpus for tower in towers)


def needed_cpus(config: AppConfig) -> int:
    """Return the CPUs that all replicas reserve, rounded up, and one for Ray Serve itself."""
    towers = [tower for tower in (config.text, config.vision) if tower.enabled]
    return int(sum(x.most_replicas * x.num_cpus for x in (*towers, config.router))) + 1
