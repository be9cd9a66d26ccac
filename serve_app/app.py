"""The whole graph: one application, three deployments, who holds a handle to whom."""

from typing import Any

from ray import serve
from ray.serve import Application
from starlette.applications import Starlette

from deployments.config import SERVE_SETTINGS, AppConfig, ReplicasConfig, TowerConfig
from deployments.router import Router
from deployments.text_tower import TextTower
from deployments.vision_tower import VisionTower
from serve_app.api.ingress import http_app

APP_NAME = "embeddings"


def build_app(config: AppConfig) -> Application:
    r"""Assemble the application; used by `serve run`, by config files and by `jina-clip-serve up`.

    ```
     HTTP, handles --> Router --> TextTower     tokens in, rows out
                             \-> VisionTower   encoded images in, rows out
    ```
    """
    towers = {}
    if config.text.enabled:
        deploy = serve.deployment(name="TextTower", **_tower_options(config, config.text))
        towers["text"] = deploy(TextTower).bind(config)
    if config.vision.enabled:
        deploy = serve.deployment(name="VisionTower", **_tower_options(config, config.vision))
        towers["vision"] = deploy(VisionTower).bind(config)
    deploy = serve.deployment(
        name="Router",
        autoscaling_config=_scaling(config.router),
        user_config=config.targets.model_dump(),
        max_ongoing_requests=config.router.max_ongoing_requests,
        ray_actor_options={"num_cpus": config.router.num_cpus},
        logging_config=_logging(config),
    )

    def routes() -> Starlette:  # called by Ray Serve in each Router replica
        return http_app(config.router.playground, allow_origins=config.cors.allow_origins)

    return deploy(serve.ingress(routes)(Router)).bind(config, **towers)


def _logging(config: AppConfig) -> dict[str, Any]:
    return {"encoding": config.log_format.upper(), "enable_access_log": False}


def _tower_options(config: AppConfig, tower: TowerConfig) -> dict[str, Any]:
    options: dict[str, Any] = {
        "max_ongoing_requests": tower.max_ongoing_requests,
        "ray_actor_options": {"num_cpus": tower.num_cpus, "num_gpus": tower.num_gpus},
        "health_check_period_s": 5,
        "health_check_timeout_s": 10,
        "logging_config": _logging(config),
    }
    if tower.scaling is None:
        return options | {"num_replicas": tower.num_replicas}
    return options | {"autoscaling_config": _scaling(tower)}


def _scaling(replicas: ReplicasConfig) -> dict[str, Any]:
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
