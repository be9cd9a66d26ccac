"""A Ray cluster of make-believe nodes on this machine, with Ray's own autoscaler.

Ray's provider for it starts a raylet for each node. `fake_multinode` itself misses a file in Ray
2.60's wheel, so it is named as an `external` provider. It serves the tests of Ray itself; that is
why it is only here.
"""

import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from benchmarks.harness.processes import signal_tree
from benchmarks.harness.sampler import seconds_until
from benchmarks.harness.servers import ROOT, new_ingress, ray_folder, stop_on_sigterm
from serve_app.listening import LOOPBACK, free_port

HEAD_TYPE = "ray.head.default"  # the provider knows no other
HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
RESOURCES = {
    "router": {"CPU": 2},
    "text_gpu": {"CPU": 2, "GPU": 1},
    "vision_gpu": {"CPU": 2, "GPU": 1},
}
IDLE_S = 6.0  # after which a node without replicas goes
START_S = 60
LIMIT_S = 90.0
NO_COMMANDS: dict[str, list[str]] = {
    name: []
    for name in (
        "initialization_commands",
        "setup_commands",
        "head_setup_commands",
        "worker_setup_commands",
        "head_start_ray_commands",
        "worker_start_ray_commands",
        "cluster_synced_files",
    )
}
SMALL: dict[str, Any] = {  # in place of the shipped config's sizes
    "model": {"source": "demo", "device": "cpu"},
    "text": {"num_gpus": 1, "num_cpus": 1},
    "vision": {"num_gpus": 1, "num_cpus": 1, "decode_threads": 2},
    "router": {"num_replicas": 1, "num_cpus": 1, "cache_bytes": 0},
    "targets": {"target_tokens_per_replica": 2000, "target_delay_s": 0},
    "policy": {"startup_s": 2},
}
DELAYS = {"upscale_delay_s": 0, "downscale_delay_s": 2}


@contextmanager
def shipped_cluster() -> Iterator[tuple[str, int]]:
    """Start a head without replicas, and Serve on it; nodes come as replicas need them.

    Yields:
        the URL of the ingress, and the head's process id.
    """
    with ray_folder() as folder:
        ingress = new_ingress("stock")
        address = f"{LOOPBACK}:{free_port()}"
        config = folder / "cluster.json"
        config.write_text(json.dumps(cluster_config(address)))
        with (folder / "head.log").open("w") as log:
            head = start_head(address, folder, config, log)
        import ray
        from ray import serve

        try:
            connect(address, head)
            stop_on_sigterm()
            options = {"host": ingress.host, "port": ingress.port}
            serve.start(proxy_location="HeadOnly", http_options=options)
            yield ingress.url, head.pid
        finally:
            ray.shutdown()
            signal_tree(head.pid, signal.SIGKILL)
            head.wait()


def start_head(address: str, folder: Path, config: Path, log: IO[str]) -> "subprocess.Popen[bytes]":
    """Start the head with its autoscaler."""
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
    }
    own = {"RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID}
    program = str(Path(sys.executable).parent / "ray")
    command = [program, "start", "--head", "--block", f"--node-ip-address={LOOPBACK}"]
    command += [f"--port={address.rsplit(':', 1)[1]}", "--num-cpus=0", f"--temp-dir={folder}"]
    command += ["--include-dashboard=false", f"--autoscaling-config={config}"]
    return subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log)


def connect(address: str, head: "subprocess.Popen[bytes]") -> None:
    """Connect as soon as the head answers; raise what Ray raises where it does not in time."""
    import ray

    end_s = time.monotonic() + START_S
    while True:
        try:
            ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError):
            if time.monotonic() > end_s or head.poll() is not None:
                raise
            time.sleep(0.5)
        else:
            return


def cluster_config(address: str) -> dict[str, Any]:
    """Return a cluster.yaml with the shipped node types, their labels and small resources."""
    shipped = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    types = {
        name: {
            "node_config": {},
            "resources": resources,
            "labels": shipped[name].get("labels", {}),
            "min_workers": 0,
            "max_workers": shipped[name]["max_workers"],
        }
        for name, resources in RESOURCES.items()
    }
    head = {"node_config": {}, "resources": {"CPU": 0}, "min_workers": 0, "max_workers": 0}
    return {
        "cluster_name": "fake",
        "max_workers": sum(kind["max_workers"] for kind in types.values()),
        "idle_timeout_minutes": IDLE_S / 60,
        "provider": {
            "type": "external",
            "module": PROVIDER,
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
            "gcs_address": address,
        },
        "auth": {},
        "docker": {},
        "available_node_types": {HEAD_TYPE: head, **types},
        "head_node_type": HEAD_TYPE,
        "upscaling_speed": 10,
        "file_mounts": {},
        **NO_COMMANDS,
    }


def deploy(towers: Mapping[str, tuple[int, int]]) -> float | None:
    """Deploy the shipped Serve config in small, with these bounds; return when it runs."""
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    shipped = yaml.safe_load((ROOT / "serve_app/configs/cluster.yaml").read_text())
    application = shipped["applications"][0]
    arguments = {name: dict(value) for name, value in SMALL.items()}
    for name in ("text", "vision"):
        if name in towers:
            low, high = towers[name]
            arguments[name]["scaling"] = {"min_replicas": low, "max_replicas": high} | DELAYS
        else:
            arguments[name] = {"enabled": False}
    application["args"] = arguments
    application["autoscaling_policy"]["policy_kwargs"] |= SMALL["policy"]
    wanted = {"Router", *(f"{name.title()}Tower" for name in towers)}
    application["deployments"] = [x for x in application["deployments"] if x["name"] in wanted]
    for deployment in application["deployments"]:
        deployment["ray_actor_options"]["num_cpus"] = 1
    client = _get_global_client()
    assert client is not None
    client.deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))
    return seconds_until(
        lambda: serve.status().applications["embeddings"].status == "RUNNING", LIMIT_S
    )


def placements() -> dict[str, list[str]]:
    """Return, by deployment, the role of the node of each running replica."""
    import ray
    from ray.serve.context import _get_global_client

    roles = {node["NodeID"]: node["Labels"].get("role", "head") for node in ray.nodes()}
    client = _get_global_client()
    assert client is not None
    details = client.get_serve_details()["applications"]["embeddings"]["deployments"]
    return {
        name: sorted(roles[x["node_id"]] for x in deployment["replicas"] if x["state"] == "RUNNING")
        for name, deployment in details.items()
    }


def nodes() -> Counter[str]:
    """Return the living nodes by role."""
    import ray

    return Counter(node["Labels"].get("role", "head") for node in ray.nodes() if node["Alive"])
