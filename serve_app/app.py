"""The whole graph: one application, three deployments, who holds a handle to whom."""

import os
from collections.abc import Mapping
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import DeploymentActorConfig
from starlette.applications import Starlette

from deployments.checked import MIB
from deployments.config import SERVE_SETTINGS, AppConfig, ReplicasConfig, TowerConfig
from deployments.errors import ServiceError
from deployments.router import Router
from deployments.text_tower import TextTower
from deployments.vision_tower import VisionTower
from serve_app.api.ingress import http_app
from serve_app.api.leases import BOOKS, Books

HEALTH_CHECK_S = 1.0  # a dead replica is found, and replaced, within this
APP_NAME = "embeddings"
SERVE_MESSAGE_BYTES = 4 * MIB  # Ray Serve's own limit of a gRPC message
FRAME_BYTES = MIB  # what a message holds beside the images of a chunk, at most


def build_app(config: AppConfig) -> Application:
    r"""Assemble the application; used by `serve run`, by config files and by `jina-clip-serve up`.

    ```
     HTTP, handles --> Router --> TextTower     tokens in, rows out
                             \-> VisionTower   encoded images in, rows out
    ```

    Raises:
        ServiceError: calls to the towers would not carry what the configuration allows.
    """
    require_transport(config)
    towers = {}
    if config.text.enabled:
        deploy = serve.deployment(name="TextTower", **_tower_options(config, config.text))
        towers["text"] = deploy(TextTower).bind(config)
    if config.vision.enabled:
        deploy = serve.deployment(name="VisionTower", **_tower_options(config, config.vision))
        towers["vision"] = deploy(VisionTower).bind(config)
    deploy = serve.deployment(
        name="Router",
        autoscaling_config=autoscaling_config(config.router),
        user_config=config.targets.model_dump(),
        max_ongoing_requests=config.router.max_ongoing_requests,
        ray_actor_options={"num_cpus": config.router.num_cpus},
        health_check_period_s=HEALTH_CHECK_S,
        logging_config=_logging(config),
        deployment_actors=_books(config),
    )

    def routes() -> Starlette:  # called by Ray Serve in each Router replica
        return http_app(config)

    return deploy(serve.ingress(routes)(Router)).bind(config, **towers)


def require_transport(config: AppConfig, environment: Mapping[str, str] = os.environ) -> None:
    """Find chunks that are larger than a gRPC message may be.

    Raises:
        ServiceError: they are; says which setting to change.
    """
    if environment.get("RAY_SERVE_USE_GRPC_BY_DEFAULT") != "1":
        return
    variable = "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"
    limit_bytes = int(environment.get(variable, SERVE_MESSAGE_BYTES))
    if config.router.max_chunk_bytes + FRAME_BYTES > limit_bytes:
        raise ServiceError(
            f"router.max_chunk_bytes ({config.router.max_chunk_bytes:,}) and {FRAME_BYTES:,} bytes "
            f"around it exceed the gRPC message limit of {limit_bytes:,} bytes; set {variable} "
            "higher on every node before Ray starts, or router.max_chunk_bytes and "
            "images.max_image_bytes lower"
        )


def _books(config: AppConfig) -> list[dict[Any, Any] | DeploymentActorConfig]:
    """Return the actor that keeps the books of keys' limits, where several Routers share them."""
    if not config.asks_for_keys or config.router.most_replicas == 1:
        return []
    books = ray.remote(Books)
    return [DeploymentActorConfig(name=BOOKS, actor_class=books, actor_options={"num_cpus": 0})]


def _logging(config: AppConfig) -> dict[str, Any]:
    return {"encoding": config.log_format.upper(), "enable_access_log": False}


def _tower_options(config: AppConfig, tower: TowerConfig) -> dict[str, Any]:
    options: dict[str, Any] = {
        "max_ongoing_requests": tower.max_ongoing_requests,
        "ray_actor_options": {"num_cpus": tower.num_cpus, "num_gpus": tower.num_gpus},
        "health_check_period_s": HEALTH_CHECK_S,
        "health_check_timeout_s": 10,
        "logging_config": _logging(config),
    }
    if tower.scaling is None:
        return options | {"num_replicas": tower.num_replicas}
    return options | {"autoscaling_config": autoscaling_config(tower)}


def autoscaling_config(replicas: ReplicasConfig) -> dict[str, Any]:
    """Return bounds, and how often the metrics travel; equal bounds only report."""
    options = {
        "min_replicas": replicas.least_replicas,
        "max_replicas": replicas.most_replicas,
        "metrics_interval_s": SERVE_SETTINGS["metrics_interval_s"],
        "look_back_period_s": SERVE_SETTINGS["look_back_period_s"],
    }
    if replicas.scaling is None:
        return options
    delays = replicas.scaling.upscale_delay_s, replicas.scaling.downscale_delay_s
    return options | {"upscale_delay_s": delays[0], "downscale_delay_s": delays[1]}
