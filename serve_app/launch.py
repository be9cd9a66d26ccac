"""Puts the application on a running Ray cluster, with its autoscaling policy where it has one."""

import time
from contextlib import suppress
from typing import Any

from ray import serve
from ray.exceptions import RayError

# Ray Serve takes an application-level autoscaling policy in a deploy schema only, and hands that
# schema to the controller through this client (Ray 2.60); `serve deploy` does the same by REST.
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from deployments.config import AppConfig, TowerConfig
from deployments.errors import ServiceError
from serve_app.app import APP_NAME, build_app

BUILDER = "serve_app.app:build_app"
POLICY = "deployments.autoscaling:TwoTowerPolicy"
POLL_S = 0.2
ANSWER_S = 5.0  # within which a Router says how much it has under way
LAST_ANSWERS_S = 1.0  # for answers on their way through the proxy
FAILED = ("DEPLOY_FAILED", "UNHEALTHY")


def launch(config: AppConfig, name: str = APP_NAME, route_prefix: str = "/") -> None:
    """Deploy and wait until every replica runs.

    Raises:
        ServiceError: the application could not be deployed; says why.
    """
    if not any(deployment.scaling for deployment in (*towers(config), config.router)):
        try:
            serve.run(build_app(config), name=name, route_prefix=route_prefix)
        except RuntimeError as error:
            raise ServiceError(_fault(name) or last_line(str(error))) from error
    else:
        deploy(spec(config, name, route_prefix))


def deploy(application: dict[str, Any]) -> None:
    """Deploy an entry of a Serve config file, and wait until every replica runs.

    Raises:
        ServiceError: it could not be deployed; says why.
    """
    name = application["name"]
    schema = ServeDeploySchema.model_validate({"applications": [application]})
    client = _get_global_client()
    assert client is not None  # it raises where Serve is not running
    client.deploy_apps(schema)
    while True:
        overview = serve.status().applications[name]
        if overview.status == ApplicationStatus.RUNNING:
            return
        if overview.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
            raise ServiceError(_fault(name) or last_line(overview.message))
        time.sleep(POLL_S)


def drain(timeout_s: float, name: str = APP_NAME) -> None:
    """Have every Router refuse requests, and wait until those under way are answered.

    Deleting the application does not: Serve stops the towers while Routers still need them.
    """
    end_s = time.monotonic() + timeout_s
    under_way = 1
    while under_way and time.monotonic() < end_s:
        # One that hangs or is being replaced is waited for like one that works.
        with suppress(TimeoutError, RayError, RayServeException):
            router = serve.get_app_handle(name)
            counts = router.broadcast("drain").results(timeout_s=ANSWER_S, return_exceptions=True)
            under_way = sum(count for count in counts if isinstance(count, int))
        time.sleep(POLL_S)
    time.sleep(LAST_ANSWERS_S)


def _fault(name: str) -> str:
    """Return why deployments of an application did not start, empty where none says so."""
    overview = serve.status().applications.get(name)
    if overview is None:
        return ""
    faults = [
        f"{deployment}: {last_line(status.message)}"
        for deployment, status in sorted(overview.deployments.items())
        if status.status.value in FAILED
    ]
    return "; ".join(faults)


def last_line(message: str) -> str:
    """Return what a traceback ends with, without the place of the exception's class."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    kind, colon, text = (lines[-1] if lines else "").partition(": ")
    return text if colon and kind.replace(".", "").isidentifier() else kind + colon + text


def spec(config: AppConfig, name: str = APP_NAME, route_prefix: str = "/") -> dict[str, Any]:
    """Return the application as an entry of a Serve config file."""
    arguments = config.model_dump(mode="json")
    arguments["api_keys"] = [key.get_secret_value() for key in config.api_keys]
    return {
        "name": name,
        "route_prefix": route_prefix,
        "import_path": BUILDER,
        "args": arguments,
        "autoscaling_policy": {
            "policy_function": POLICY,
            "policy_kwargs": config.policy.model_dump(),
        },
    }


def towers(config: AppConfig) -> list[TowerConfig]:
    """Return the towers that the application has."""
    return [tower for tower in (config.text, config.vision) if tower.enabled]
