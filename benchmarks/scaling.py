"""Do the towers scale by their own work, down again, to zero, and without restarts?

`python -m benchmarks.scaling [--json]` starts Ray Serve on this machine with make-believe GPUs, one
for each tower replica, and prints the running replicas over time: under a burst of images, under a
burst of texts at the same request rate, from zero and back, and while a target is changed.
"""

import argparse
import base64
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import torch

from benchmarks.machine import describe
from deployments.config import AppConfig
from serve_app.gallery import gallery_images
from serve_app.server import LOOPBACK, Ingress, free_port, prepare_environment

TOWERS = ("TextTower", "VisionTower")
SCALING = {"min_replicas": 1, "max_replicas": 3, "upscale_delay_s": 1, "downscale_delay_s": 3}
SETTINGS: dict[str, Any] = {
    "model": {"device": "cpu"},
    "text": {"num_cpus": 0.1, "num_gpus": 1, "scaling": SCALING},
    "vision": {"num_cpus": 0.1, "num_gpus": 1, "scaling": SCALING},
    "router": {"num_cpus": 0.1},
    "targets": {
        "target_tokens_per_replica": 4_000,
        "target_images_per_replica": 60,
        "target_delay_s": 0,
    },
    "policy": {"hold_s": 3, "window_s": 5},
}
REQUESTS = 40
REQUESTS_PER_S = 4


@dataclass
class Watch:
    """Samples the running replicas of each tower until told to stop."""

    seen: list[tuple[float, dict[str, int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._begin = time.monotonic()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self._sample()
            time.sleep(0.2)

    def _sample(self) -> None:
        self.seen.append((round(time.monotonic() - self._begin, 1), replicas()))

    def finish(self) -> dict[str, str]:
        """Stop, and return the changes of each tower's count, with their seconds."""
        self._stop.set()
        self._thread.join()
        self._sample()
        return {name: self._course(name) for name in TOWERS}

    def _course(self, name: str) -> str:
        changes: list[tuple[float, int]] = []
        for at_s, counts in self.seen:
            if not changes or changes[-1][1] != counts[name]:
                changes.append((at_s, counts[name]))
        return ", ".join(f"{count} at {at_s:g} s" for at_s, count in changes)


def replicas() -> dict[str, int]:
    """Return the running replicas of each tower."""
    from ray import serve

    deployments = serve.status().applications["embeddings"].deployments
    states = {name: deployments[name].replica_states for name in TOWERS}
    return {
        name: sum(n for state, n in x.items() if state == "RUNNING") for name, x in states.items()
    }


def replica_names() -> set[str]:
    """Return the actors of all replicas; a restart gives another name."""
    import ray

    actors = ray.util.list_named_actors(all_namespaces=True)
    return {actor["name"] for actor in actors if "SERVE_REPLICA" in actor["name"]}


def burst(
    url: str, body: Callable[[int], dict[str, Any]], settled: dict[str, int]
) -> dict[str, Any]:
    """Send requests at a fixed rate, wait for the replicas to settle, and tell what happened."""
    watch = Watch()
    with httpx.Client(base_url=url, timeout=120) as client, ThreadPoolExecutor(REQUESTS) as pool:
        calls = []
        for number in range(REQUESTS):
            calls.append(pool.submit(client.post, "/v1/embeddings", json=body(number)))
            time.sleep(1 / REQUESTS_PER_S)
        statuses = {call.result().status_code for call in calls}
    end = time.monotonic() + 90
    while replicas() != settled and time.monotonic() < end:
        time.sleep(0.2)
    return {"statuses": sorted(statuses), **watch.finish()}


def measure() -> dict[str, Any]:
    """Run all four scenes."""
    ingress = Ingress("stock", LOOPBACK, free_port())
    prepare_environment(ingress)
    import ray
    from ray import serve

    from serve_app.launch import launch

    files = [p.path.read_bytes() for p in gallery_images()[:60]]

    # No two items alike, since those would be computed only once.
    def image_body(number: int) -> dict[str, Any]:
        images = [base64.b64encode(file + b"%d" % number).decode() for file in files]
        return {"input": [{"image": image} for image in images], "embedding_type": "base64"}

    def text_body(number: int) -> dict[str, Any]:
        texts = [f"{number} {index} " + "word " * 300 for index in range(8)]
        return {"input": texts, "embedding_type": "base64"}

    def greeting(number: int) -> dict[str, Any]:
        return {"input": [f"hello {number}"]}

    results: dict[str, Any] = {}
    ray.init(num_cpus=8, num_gpus=6, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": ingress.host, "port": ingress.port})
        launch(AppConfig.model_validate(SETTINGS))
        one = dict.fromkeys(TOWERS, 1)
        results["burst of images"] = burst(ingress.url, image_body, one)
        results["burst of texts, same rate"] = burst(ingress.url, text_body, one)
        results["target changed live"] = change_target()
        zero = {"scaling": SCALING | {"min_replicas": 0}}
        settings = SETTINGS | {
            "text": SETTINGS["text"] | zero,
            "vision": SETTINGS["vision"] | zero,
            "targets": SETTINGS["targets"] | {"scale_to_zero": True},
        }
        launch(AppConfig.model_validate(settings))
        none = dict.fromkeys(TOWERS, 0)
        end = time.monotonic() + 60
        while replicas() != none and time.monotonic() < end:
            time.sleep(0.2)
        results["from zero and back"] = burst(
            ingress.url, lambda number: {"input": [f"hello {number}"]}, none
        )
    finally:
        ray.shutdown()
    return results


def change_target() -> dict[str, Any]:
    """Give the Router another target, and compare the replicas before and after."""
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    from serve_app.launch import spec

    config = AppConfig.model_validate(SETTINGS)
    before = replica_names()
    targets = config.targets.model_dump() | {"target_images_per_replica": 77}
    application = spec(config) | {"deployments": [{"name": "Router", "user_config": targets}]}
    client = _get_global_client()
    assert client is not None
    client.deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))
    router, end = serve.get_app_handle("embeddings"), time.monotonic() + 30
    reported = 0.0
    while reported != 77 and time.monotonic() < end:
        stats = router.record_autoscaling_stats.remote().result()
        reported = stats["target_images_per_replica"]
        time.sleep(0.2)
    return {"reported": reported, "same_replicas": replica_names() == before}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args(arguments).json
    results = {"machine": describe(torch.device("cpu"))} | measure()
    if as_json:
        print(json.dumps(results))
        return
    for name, value in results.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
