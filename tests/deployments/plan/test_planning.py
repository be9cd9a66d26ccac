"""A plan from end to end on a small trace: numbers, JSON, tables and the picture."""

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from deployments import plan
from deployments.plan.report import PlanReport, PolicyReport, best, thinned, undominated


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> plan.PlanOptions:
    """Twenty minutes: ten calm, then images in plenty at the same requests."""
    rng = np.random.default_rng(0)
    times_s = np.sort(rng.uniform(0, 1200, 1200))
    rows = [f"{at:.3f},{rng.integers(10, 500)},{2 if at < 600 else 40}" for at in times_s]
    path = tmp_path_factory.mktemp("trace") / "trace.csv"
    path.write_text("\n".join(["time,tokens,images", *rows]))
    return plan.PlanOptions(trace=path, text_rate=10_000, image_rate=10, max_replicas=16)


@pytest.fixture(scope="module")
def report(options: plan.PlanOptions) -> PlanReport:
    return plan.run(options)


def text_of(report: PlanReport, columns: int = 160) -> str:
    console = Console(width=columns, file=io.StringIO(), record=True)
    console.print(report)
    return console.export_text()


def test_a_plan_reports_each_tower_and_policy(report: PlanReport) -> None:
    """Text stays at one replica, images need five and a half; both policies are there."""
    text, vision = report.modalities
    assert [policy.name for policy in vision.policies] == ["work", "request count"]
    assert set(text.policies[0].replicas) == {1}
    assert vision.bound.peak_replicas >= 5
    assert max(vision.policies[0].replicas) >= vision.bound.peak_replicas
    assert vision.num_items == vision.cost
    assert text.num_items == text.num_requests == 1200


def test_the_json_is_the_report(report: PlanReport) -> None:
    """It survives a round trip and carries the numbers of the table."""
    data = json.loads(json.dumps(report.to_json()))
    policy = data["modalities"][1]["policies"][0]
    assert policy["gpu_hours"] == report.modalities[1].policies[0].gpu_hours
    assert policy["replicas"] == list(report.modalities[1].policies[0].replicas)


def test_the_table_names_what_was_measured(report: PlanReport) -> None:
    """Policies, bound and units are there for a person to read."""
    shown = text_of(report)
    for word in ("request count", "bound", "GPU-hours", "p99", "refused", "1,200 requests"):
        assert word in shown


def test_the_table_fits_80_columns(report: PlanReport) -> None:
    """No cell is broken over lines or cut short, whatever the numbers."""
    vision = report.modalities[1]
    large = replace(vision.policies[1], gpu_hours=123456.7, num_refused=1234567)
    modality = replace(vision, policies=(vision.policies[0], large))
    shown = text_of(replace(report, modalities=(modality,)), 80)
    assert max(map(len, shown.splitlines())) <= 80
    row = next(x for x in shown.splitlines() if "123,456.7" in x)
    assert row.split()[:2] == ["request", "count"]
    assert row.split()[-1] == "1,234,567"
    assert "…" not in shown


def test_a_sweep_draws_the_frontier_and_suggests(options: plan.PlanOptions) -> None:
    """Both policies over their settings; the suggestion is one of ours; text has none to make."""
    text, vision = plan.run(replace(options, sweep=True)).modalities
    assert {point.name for point in vision.frontier} == {"work", "request count"}
    assert text.frontier == ()
    assert "nothing to tune" in text.suggestion
    assert "headroom=" in vision.suggestion or "no setting" in vision.suggestion


def test_budgets_refuse_in_a_plan(options: plan.PlanOptions) -> None:
    """With room for 100 images the episode's beginning is refused in part."""
    _, vision = plan.run(replace(options, max_queued_images=100)).modalities
    assert vision.policies[0].num_refused > 0


def test_a_tower_without_load_is_left_out(tmp_path: Path) -> None:
    """A trace of texts plans the text tower alone."""
    path = tmp_path / "trace.csv"
    path.write_text("time,tokens\n0,10\n60,10\n")
    options = plan.PlanOptions(trace=path, scale=2.5)
    assert [part.name for part in plan.run(options).modalities] == ["text"]


@pytest.mark.parametrize(
    ("option", "value"), [("scale", 0.0), ("text_rate", -1.0), ("startup_s", -1.0)]
)
def test_impossible_options_are_refused(option: str, value: float) -> None:
    """The message names the option and its value."""
    with pytest.raises(ValueError, match=f"{option} is {value}"):
        plan.run(replace(plan.PlanOptions(), **{option: value}))


def test_the_picture_is_a_png_with_both_policies(report: PlanReport, tmp_path: Path) -> None:
    """It opens, is large enough to read, and has the colours of both curves."""
    pytest.importorskip("matplotlib")
    path = tmp_path / "plan.png"
    plan.plot(report, path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width > 1000
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in ((0x1A, 0x7F, 0x5A), (0xD1, 0x60, 0x3D)):
        assert (pixels == colour).all(axis=1).any()


def test_a_missing_plot_library_says_how_to_get_it(
    report: PlanReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the extra."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"jina-clip-serve\[plan\]"):
        plan.plot(report, tmp_path / "plan.png")


@pytest.fixture
def point() -> Callable[[str, float, float], PolicyReport]:
    def make(name: str, share: float, hours: float) -> PolicyReport:
        return PolicyReport(name, f"{hours:g}", hours, share, (0.0, 0.0, 0.0), 0, (1,))

    return make


def test_the_best_setting_is_the_cheapest_that_suffices(
    point: Callable[[str, float, float], PolicyReport],
) -> None:
    """Neither the cheapest of all nor the one most on time; none where none suffices."""
    points = (point("work", 0.98, 1.0), point("work", 0.992, 3.0), point("work", 1.0, 5.0))
    found = best(points, "work", 0.99)
    assert found is not None
    assert found.gpu_hours == 3.0
    assert best(points, "request count", 0.99) is None
    assert best(points[:1], "work", 0.99) is None


def test_dominated_settings_are_not_shown(
    point: Callable[[str, float, float], PolicyReport],
) -> None:
    """Dearer and no better is left out, policy by policy."""
    points = (point("a", 0.9, 1.0), point("a", 0.9, 2.0), point("a", 0.95, 3.0), point("b", 0.5, 9))
    assert [x.gpu_hours for x in undominated(points)] == [1.0, 3.0, 9]


def test_a_thinned_series_keeps_the_peaks() -> None:
    """Ten thousand seconds become at most a thousand points, the single peak among them."""
    replicas = np.ones(10_000, np.int64)
    replicas[7_777] = 9
    assert len(thinned(replicas)) <= 1008
    assert max(thinned(replicas)) == 9
