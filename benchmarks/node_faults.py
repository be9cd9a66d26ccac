"""Make-believe nodes: where replicas land, when nodes come and go, and what a lost one costs."""

import signal
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.harness.callers import callers, seconds_until, seen
from benchmarks.harness.fake_cluster import ROOT, fake_cluster, shipped_node_types
from benchmarks.harness.processes import Process, of_kind, signal_tree
from serve_app.server import LOOPBACK, Ingress, free_port, prepare_environment

SCENES = ("types", "node", "frozen-node")
RESOURCES = {
    "router": {"CPU": 2},
    "text_gpu": {"CPU": 2, "GPU": 1},
    "vision_gpu": {"CPU": 2, "GPU": 1},
}
IDLE_S = 6.0
LIMIT_S = 90.0
RATE_PER_S = 20
BEFORE_S = 5
AFTER_S = 75
REQUESTS = 24
SMALL: dict[str, Any] = {  # in place of the shipped config's sizes
    "model": {"source": "demo", "device": "cpu"},
    "text": {"num_gpus": 1, "num_cpus": 1},
    "vision": {"num_gpus": 1, "num_cpus": 1, "decode_threads": 2},
    "router": {"num_replicas": 1, "num_cpus": 1},
    "targets": {"target_tokens_per_replica": 2000, "target_delay_s": 0},
    "policy": {"hold_s": 3, "window_s": 5},
}
DELAYS = {"upscale_delay_s": 0, "downscale_delay_s": 2}


def run(what: str, folder: Path) -> dict[str, Any]:
    """Start the make-believe cluster and run one scene on it."""
    ingress = Ingress("stock", LOOPBACK, free_port())
    prepare_environment(ingress)
    with fake_cluster(shipped_node_types(RESOURCES), folder, IDLE_S) as head:
        from ray import serve

        signal.signal(signal.SIGTERM, signal.default_int_handler)  # leaves nothing behind
        options = {"host": ingress.host, "port": ingress.port}
        serve.start(proxy_location="HeadOnly", http_options=options)
        if what == "types":
            return node_types(ingress.url)
        number = signal.SIGKILL if what == "node" else signal.SIGSTOP
        return lost_node(ingress.url, head, number, folder)


def node_types(url: str) -> dict[str, Any]:
    """Deploy, load the text tower until it has a second node, and wait until that goes."""
    placed_s = deploy({"text": (1, 2), "vision": (1, 1)})
    result: dict[str, Any] = {"placed_s": placed_s, "at_start": placements(), "nodes": nodes()}
    with ThreadPoolExecutor(REQUESTS) as pool, httpx.Client(base_url=url, timeout=90) as client:
        calls = [
            pool.submit(client.post, "/v1/embeddings", json=long_texts(number))
            for number in range(REQUESTS)
        ]
        result["second_text_node_s"] = seconds_until(lambda: nodes()["text"] == 2, LIMIT_S)
        statuses = Counter(call.result().status_code for call in calls)
        result["second_replica_s"] = seconds_until(
            lambda: placements().get("TextTower", []) == ["text", "text"], LIMIT_S
        )
    result |= {"statuses": dict(statuses), "under_load": placements()}
    result["back_to_one_s"] = seconds_until(lambda: nodes()["text"] == 1, LIMIT_S)
    return result | {"at_end": placements(), "nodes_at_end": nodes()}


def long_texts(number: int) -> dict[str, Any]:
    """Return a request like no other: a Router computes only once what is asked twice."""
    return {"input": [f"{number} {n} " + "word " * 300 for n in range(8)], "dimensions": 8}


def lost_node(url: str, head: int, number: signal.Signals, folder: Path) -> dict[str, Any]:
    """Take one of two text nodes away under load, and return what callers saw."""
    placed_s = deploy({"text": (2, 2)})
    with callers(url, folder, RATE_PER_S, BEFORE_S + AFTER_S, "query") as outcomes:
        time.sleep(BEFORE_S)
        lost = signal_tree(of_kind(head, "TextTower")[0].parent, number)
        fault_s = time.monotonic()
        noticed_s = seconds_until(lambda: nodes()["text"] < 2, AFTER_S)
        back_s = seconds_until(lambda: len(healthy(head, lost)) == 2, AFTER_S)
        saw = seen(outcomes(), fault_s)
    for process in lost:  # a frozen one has to go, too
        if process.is_alive():
            process.kill()
    back_s = None if back_s is None else round((noticed_s or 0) + back_s, 1)
    return {"placed_s": placed_s, "noticed_s": noticed_s, "two_replicas_again_s": back_s} | saw


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


def healthy(head: int, lost: list[Process]) -> list[str]:
    """Return the running text replicas, once the cluster counts only living ones."""
    gone = {process.pid for process in lost}
    alive = [x for x in of_kind(head, "TextTower") if x.pid not in gone]
    running = placements().get("TextTower", [])
    return running if len(alive) >= len(running) else []
