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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

import serve_app
from benchmarks.harness.processes import signal_tree
from serve_app.server import LOOPBACK, free_port

HEAD_TYPE = "ray.head.default"  # the provider knows no other
HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
START_S = 60
MAPPINGS = ("file_mounts",)
COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "cluster_synced_files",
)
ROOT = Path(serve_app.__file__).parents[1]


def shipped_node_types(resources: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, Any]]:
    """Return the node types of the shipped cluster.yaml with their labels and these resources."""
    shipped = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    return {
        name: {
            "node_config": {},
            "resources": dict(resources[name]),
            "labels": shipped[name].get("labels", {}),
            "min_workers": 0,
            "max_workers": shipped[name]["max_workers"],
        }
        for name in resources
    }


@contextmanager
def fake_cluster(
    node_types: Mapping[str, Mapping[str, Any]], folder: Path, idle_s: float
) -> Iterator[int]:
    """Start a head without replicas, connect, yield its process id, and stop what was started.

    Args:
        node_types: as in a cluster.yaml; nodes come as replicas need them.
        folder: for Ray's files; a short path, since sockets lie in it.
        idle_s: after which a node without replicas goes.
    """
    address = f"{LOOPBACK}:{free_port()}"
    config = folder / "cluster.json"
    config.write_text(json.dumps(_config(node_types, address, idle_s)))
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
    }
    own = {"RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID}
    ray_program = str(Path(sys.executable).parent / "ray")
    command = [ray_program, "start", "--head", "--block", f"--node-ip-address={LOOPBACK}"]
    command += [f"--port={address.rsplit(':', 1)[1]}", "--num-cpus=0", f"--temp-dir={folder}"]
    command += ["--include-dashboard=false", f"--autoscaling-config={config}"]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log)
    import ray

    try:
        _connect(address, head)
        yield head.pid
    finally:
        ray.shutdown()
        signal_tree(head.pid, signal.SIGKILL)
        head.wait()


def _connect(address: str, head: "subprocess.Popen[bytes]") -> None:
    import ray

    end = time.monotonic() + START_S
    while True:
        try:
            ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError):
            if time.monotonic() > end or head.poll() is not None:
                raise
            time.sleep(0.5)
        else:
            return


def _config(
    node_types: Mapping[str, Mapping[str, Any]], address: str, idle_s: float
) -> dict[str, Any]:
    head = {"node_config": {}, "resources": {"CPU": 0}, "min_workers": 0, "max_workers": 0}
    return {
        "cluster_name": "fake",
        "max_workers": sum(kind["max_workers"] for kind in node_types.values()),
        "idle_timeout_minutes": idle_s / 60,
        "provider": {
            "type": "external",
            "module": PROVIDER,
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
            "gcs_address": address,
        },
        "auth": {},
        "docker": {},
        "available_node_types": {HEAD_TYPE: head, **node_types},
        "head_node_type": HEAD_TYPE,
        "upscaling_speed": 10,
        **{key: {} for key in MAPPINGS},
        **{key: [] for key in COMMANDS},
    }
