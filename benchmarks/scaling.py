"""Do the towers scale by their own work, down again, to zero, and without restarts?

    python -m benchmarks.scaling [--json]

Starts Ray Serve on this machine with make-believe GPUs, one for each tower replica, and tells the
running replicas over time: under a burst of images, under a burst of texts at the same request
rate, from zero and back, and while a target is changed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.harness import report
from benchmarks.harness.callers import ask
from benchmarks.harness.outcomes import tally
from benchmarks.harness.sampler import Sampler, seconds_until
from benchmarks.harness.servers import new_ingress, ray_folder, stop_on_sigterm
from deployments.config import AppConfig

TOWERS = ("TextTower", "VisionTower")
SCALING = {"min_replicas": 1, "max_replicas": 3, "upscale_delay_s": 1, "downscale_delay_s": 3}
SETTINGS: dict[str, Any] = {
    "model": {"device": "cpu"},
    "text": {"num_cpus": 0.1, "num_gpus": 1, "scaling": SCALING},
    "vision": {"num_cpus": 0.1, "num_gpus": 1, "scaling": SCALING},
    "router": {"num_cpus": 0.1, "cache_bytes": 0},
    "targets": {
        "target_tokens_per_replica": 4_000,
        "target_images_per_replica": 60,
        "target_delay_s": 0,
    },
    "policy": {"startup_s": 2},
}
ZERO = {"scaling": SCALING | {"min_replicas": 0}}
TO_ZERO = SETTINGS | {
    "text": SETTINGS["text"] | ZERO,
    "vision": SETTINGS["vision"] | ZERO,
    "targets": SETTINGS["targets"] | {"scale_to_zero": True},
}
BURST = "--rate", "4", "--requests", "40"
BURST_S = 60.0  # at most: it ends with the last request
SETTLE_S = 90.0
LOOK_S = 0.2
NEW_TARGET = 77


@contextmanager
def serve_with_gpus(gpus: int = 6) -> Iterator[str]:
    """Start Ray with make-believe GPUs, and Serve on it; yields the URL."""
    with ray_folder():
        ingress = new_ingress("stock")
        import ray
        from ray import serve

        ray.init(num_cpus=8, num_gpus=gpus, include_dashboard=False, log_to_driver=False)
        try:
            stop_on_sigterm()
            serve.start(http_options={"host": ingress.host, "port": ingress.port})
            yield ingress.url
        finally:
            ray.shutdown()


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


def burst(url: str, mix: str, settled: dict[str, int]) -> dict[str, Any]:
    """Send requests at a fixed rate, wait for the replicas to settle, and tell what happened."""
    report.progress(f"a burst of {mix}")
    with Sampler(replicas, LOOK_S) as sampler:
        outcomes = tally(ask(url, mix, BURST_S, *BURST))
        seconds_until(lambda: replicas() == settled, SETTLE_S)
    return {"outcomes": outcomes, **{name: course(sampler.samples, name) for name in TOWERS}}


def course(samples: Sequence[tuple[float, dict[str, int]]], name: str) -> str:
    """Return the changes of a tower's count of replicas, with their seconds."""
    changes: list[tuple[float, int]] = []
    for at_s, counts in samples:
        if not changes or changes[-1][1] != counts[name]:
            changes.append((at_s, counts[name]))
    return ", ".join(f"{count} at {at_s:.1f} s" for at_s, count in changes)


def change_target() -> dict[str, Any]:
    """Give the Router another target, and compare the replicas before and after."""
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    from serve_app.launch import spec

    config = AppConfig.model_validate(SETTINGS)
    before = replica_names()
    targets = config.targets.model_dump() | {"target_images_per_replica": NEW_TARGET}
    application = spec(config) | {"deployments": [{"name": "Router", "user_config": targets}]}
    client = _get_global_client()
    assert client is not None
    client.deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))
    router = serve.get_app_handle("embeddings")

    def is_reported() -> bool:
        stats = router.record_autoscaling_stats.remote().result()
        return bool(stats["target_images_per_replica"] == NEW_TARGET)

    return {
        "reported_s": seconds_until(is_reported, 30),
        "same_replicas": replica_names() == before,
    }


def measure() -> dict[str, Any]:
    """Run all four scenes."""
    one, none = dict.fromkeys(TOWERS, 1), dict.fromkeys(TOWERS, 0)
    with serve_with_gpus() as url:
        from serve_app.launch import launch

        launch(AppConfig.model_validate(SETTINGS))
        results = {
            "burst of images": burst(url, "60 images", one),
            "burst of texts, same rate": burst(url, "8 texts of 300 words", one),
            "target changed live": change_target(),
        }
        launch(AppConfig.model_validate(TO_ZERO))
        seconds_until(lambda: replicas() == none, SETTLE_S)
        return results | {"from zero and back": burst(url, "query", none)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    options = report.command(__doc__).parse_args(arguments)
    report.write(options, measure(), report.show_values)


if __name__ == "__main__":
    main()
