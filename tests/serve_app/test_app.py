"""The graph that `build_app` assembles, from the shipped configuration files too."""

from pathlib import Path

import pytest
import yaml

import serve_app
from deployments.config import AppConfig

ROOT = Path(serve_app.__file__).parents[1]
CONFIGS = sorted((ROOT / "serve_app" / "configs").glob("*.yaml"))


def graph(config: AppConfig):
    """Return the built application's deployments by name."""
    from ray.serve._private.build_app import build_app as resolve

    from serve_app.app import build_app

    built = resolve(build_app(config), name="embeddings")
    return {deployment.name: deployment for deployment in built.deployments}, built


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_each_shipped_configuration_builds_the_three_deployments(path):
    """Router is the ingress; towers carry the GPUs and replicas that the file asks for."""
    application = yaml.safe_load(path.read_text())["applications"][0]
    assert application["import_path"] == "serve_app.app:build_app"
    config = AppConfig.model_validate(application["args"])
    deployments, built = graph(config)
    assert set(deployments) == {"Router", "TextTower", "VisionTower"}
    assert built.ingress_deployment_name == "Router"
    for name, tower in (("TextTower", config.text), ("VisionTower", config.vision)):
        assert deployments[name].ray_actor_options["num_gpus"] == tower.num_gpus
        assert deployments[name].num_replicas == tower.num_replicas
        assert deployments[name].max_ongoing_requests == tower.max_ongoing_requests


def test_a_tower_that_is_off_is_not_deployed():
    """Text-only and vision-only applications have two deployments."""
    text_only, _ = graph(AppConfig.model_validate({"vision": {"enabled": False}}))
    vision_only, _ = graph(AppConfig.model_validate({"text": {"enabled": False}}))
    assert set(text_only) == {"Router", "TextTower"}
    assert set(vision_only) == {"Router", "VisionTower"}


def test_serve_hands_the_builder_a_validated_configuration():
    """Ray Serve reads the builder's annotation; without it the arguments would be a bare dict."""
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as call

    from serve_app.app import build_app

    with pytest.raises(ValueError, match="max_batch_tokenz"):
        call(build_app, {"text": {"max_batch_tokenz": 1}})
    call(build_app, {"text": {"max_batch_tokens": 8192}})


def test_the_cluster_file_is_valid_for_the_cluster_launcher():
    """Ray's own validation takes it, and refuses it with a key misspelt."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config(prepare_config(cluster))
    cluster["max_wrokers"] = 3
    with pytest.raises(Exception, match="max_wrokers"):
        validate_config(prepare_config(cluster))
