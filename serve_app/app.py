"""The whole graph: one application, three deployments, who holds a handle to whom."""

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from deployments.config import AppConfig, TowerConfig
from deployments.router import Router
from deployments.text_tower import TextTower
from deployments.vision_tower import VisionTower
from serve_app.ingress import http_app

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
        deploy = serve.deployment(name="TextTower", **_tower_options(config.text))
        towers["text"] = deploy(TextTower).bind(config)
    if config.vision.enabled:
        deploy = serve.deployment(name="VisionTower", **_tower_options(config.vision))
        towers["vision"] = deploy(VisionTower).bind(config)
    deploy = serve.deployment(
        name="Router",
        num_replicas=config.router.num_replicas,
        max_ongoing_requests=config.router.max_ongoing_requests,
        ray_actor_options={"num_cpus": config.router.num_cpus},
        logging_config={"enable_access_log": False},
    )
    return deploy(serve.ingress(http_app)(Router)).bind(config, **towers)


def app_handle() -> DeploymentHandle[Any]:
    """Return the handle of the running application; `.embed.remote([...])` embeds a mixed list."""
    return serve.get_app_handle(APP_NAME)


def _tower_options(config: TowerConfig) -> dict[str, Any]:
    return {
        "num_replicas": config.num_replicas,
        "max_ongoing_requests": config.max_ongoing_requests,
        "ray_actor_options": {"num_cpus": config.num_cpus, "num_gpus": config.num_gpus},
        "health_check_period_s": 5,
        "health_check_timeout_s": 10,
        "logging_config": {"enable_access_log": False},
    }
