"""The dashboard, the alerts and the table name metrics that exist, and that are exported."""

import json
import re
import time
from pathlib import Path

import httpx
import pytest
import yaml

import serve_app
from deployments.metrics import RouterMetrics, TowerMetrics

FOLDER = Path(serve_app.__file__).parent / "configs" / "monitoring"
SERVE = {  # Ray Serve 2.60's own, as a running service exports them
    "serve_autoscaling_desired_replicas",
    "serve_deployment_replica_healthy",
    "serve_deployment_replica_starts",
}
STAGES = {"parse", "tokenise", "fetch", "render"}
SUFFIXES = {"Counter": ("_total",), "Gauge": ("",), "Histogram": ("_bucket", "_count", "_sum")}


@pytest.fixture
def declared(monkeypatch):
    """The kind of each metric that the replicas declare, by name."""
    kinds = {}
    for kind in SUFFIXES:
        monkeypatch.setattr(
            f"deployments.metrics.{kind}",
            lambda name, *_args, kind=kind, **_options: kinds.update({name: kind}),
        )
    TowerMetrics("tokens"), TowerMetrics("images"), RouterMetrics()
    return kinds


def expressions():
    """Every PromQL expression of the dashboard and of the alerts."""
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    alerts = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    return queries + [rule["expr"] for rule in alerts]


def exported(declared):
    kinds = declared | dict.fromkeys(SERVE, "Gauge")
    kinds["serve_deployment_replica_starts"] = "Counter"
    return {f"ray_{name}{end}" for name, kind in kinds.items() for end in SUFFIXES[kind]}


def test_every_expression_asks_for_metrics_that_replicas_export(declared):
    """Names with Ray's prefix and the suffix of their kind; none is misspelt."""
    names = {name for query in expressions() for name in re.findall(r"\bray_\w+", query)}
    assert names <= exported(declared)
    assert len(names) > 20
    assert "ray_jina_clip_requests" not in exported(declared)  # a counter ends in _total


def test_the_table_has_every_metric_with_its_kind(declared):
    """Nothing is exported that the table does not explain, nor explained and not exported."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", (FOLDER / "metrics.md").read_text(), re.M)
    assert {name: kind.title() for name, kind in rows} == declared


def test_the_first_row_of_the_dashboard_answers_the_first_question():
    """Six panels in one line, the towers' device time among them."""
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    title, *first = panels[:7]
    assert title["title"].startswith("Is it healthy")
    assert len({panel["gridPos"]["y"] for panel in first}) == 1
    assert any("tower_batch_seconds" in str(panel["targets"]) for panel in first)
    places = [tuple(panel["gridPos"].values()) for panel in panels]
    assert len(set(places)) == len(panels)


def test_a_running_service_exports_the_metrics_that_are_asked_about(service, declared):
    """What dashboard and alerts ask about stands on the node's metrics page."""
    import ray

    service.embed(["hello", {"image": "bm9uZQ=="}], errors="partial")
    assert service.post({"input": []}).status_code == 400
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = {
        name
        for query in expressions()
        for name in re.findall(r"\bray_(?:serve|jina_clip)_\w+", query)
        # These wait for events that the test does not make: pictures, scaling, lost replicas.
        if not name.endswith(("_images_total", "_desired_replicas", "_retries_total"))
    }
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        page = httpx.get(url, timeout=10).text
        found = set(re.findall(r"^(\w+)\{", page, re.M))
        stages = set(re.findall(r'^ray_jina_clip_stage_seconds_count\{.*stage="(\w+)"', page, re.M))
        if wanted <= found and stages >= STAGES:
            return
        time.sleep(1)
    raise AssertionError((wanted - found, STAGES - stages))
