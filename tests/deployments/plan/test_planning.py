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
from deployments.plan.load import Load
from deployments.plan.planning import standing
from deployments.plan.report import PlanReport, PolicyReport, best, thinned
from deployments.plan.tower import Tower


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> plan.PlanOptions:
    """Ten minutes: five calm, then images in plenty at the same requests."""
    rng = np.random.default_rng(0)
    times_s = np.sort(rng.uniform(0, 600, 600))
    rows = [f"{at:.3f},{rng.integers(10, 500)},{2 if at < 300 else 40}" for at in times_s]
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
    (start,) = vision.starts
    assert [policy.name for policy in start.policies] == ["rehearsed", "Ray count"]
    assert set(text.starts[0].policies[0].replicas) == {1}
    assert start.bound.peak_replicas >= 5
    assert max(start.policies[0].replicas) >= start.bound.peak_replicas
    assert vision.num_items == vision.cost
    assert text.num_items == text.num_requests == 600


def test_the_json_is_the_report(report: PlanReport) -> None:
    """It survives a round trip and carries the numbers of the table."""
    data = json.loads(json.dumps(report.to_json()))
    policy = data["modalities"][1]["starts"][0]["policies"][0]
    ours = report.modalities[1].starts[0].policies[0]
    assert policy["gpu_hours"] == ours.gpu_hours
    assert policy["replicas"] == list(ours.replicas)


def test_the_table_names_what_was_measured(report: PlanReport) -> None:
    """Policies, bound and units are there for a person to read."""
    shown = text_of(report)
    for word in (
        "Ray count",
        "rehearsed",
        "bound",
        "GPU-hours",
        "p99",
        "refused",
        "600 requests",
    ):
        assert word in shown


def test_the_table_fits_80_columns(report: PlanReport) -> None:
    """No cell is broken over lines or cut short, whatever the numbers."""
    vision = report.modalities[1]
    ours, count = vision.starts[0].policies
    large = replace(count, gpu_hours=123456.7, num_refused=1234567)
    start = replace(vision.starts[0], policies=(ours, large))
    modality = replace(vision, starts=(start,))
    shown = text_of(replace(report, modalities=(modality,)), 80)
    assert max(map(len, shown.splitlines())) <= 80
    row = next(x for x in shown.splitlines() if "123,456.7" in x)
    assert row.split()[:2] == ["Ray", "count"]
    assert row.split()[-1] == "1,234,567"
    assert "…" not in shown


def test_against_all_shows_each_policy_at_its_best(options: plan.PlanOptions) -> None:
    """For each start-up: ours, and of the others the cheapest setting with 99% on time."""
    every = replace(options, against="all", startups_s=(20.0, 40.0))
    _, vision = plan.run(every).modalities
    assert [start.startup_s for start in vision.starts] == [20.0, 40.0]
    for start in vision.starts:
        assert [policy.name for policy in start.policies] == [
            "rehearsed",
            "Ray count",
            "HPA utilization",
            "KEDA rate",
            "queue length",
            "token velocity",
            "forecast",
            "Chiron",
        ]
        for shown in start.policies[1:]:
            same = [x for x in start.tried if x.name == shown.name]
            enough = [x.gpu_hours for x in same if x.share_on_time >= 0.99]
            most = max(x.share_on_time for x in same)
            assert shown.gpu_hours == min(enough) if enough else shown.share_on_time == most
            assert len({x.setting for x in same}) == len(same) > 5


def test_where_starts_are_too_slow_a_standing_capacity_is_named(
    options: plan.PlanOptions,
) -> None:
    """Five quiet minutes, then twenty times the images: late at 120 s, and what would not be."""
    late = plan.run(replace(options, startups_s=(120.0,)))
    vision = late.modalities[1]
    (start,) = vision.starts
    assert start.policies[0].share_on_time < 0.99
    assert start.sooner.share_on_time > start.policies[0].share_on_time
    assert [each.share for each in vision.standing] == [0.95, 0.99, 0.999]
    assert 5 <= vision.standing[0].replicas <= vision.standing[2].replicas <= 8
    assert "always there" in text_of(late)


def test_a_standing_capacity_is_the_smallest() -> None:
    """12 a second at 10 a replica for an hour: one is ever later, two keep all on time."""
    times_s = np.arange(0, 3600, 1 / 12)
    even = Load.of(times_s, np.ones(len(times_s)), np.ones(len(times_s)), 3600.0)
    (found,) = standing(even, Tower(rate=10.0), [0.99])
    assert (found.replicas, found.gpu_hours) == (2, 2.0)


def test_budgets_refuse_in_a_plan(options: plan.PlanOptions) -> None:
    """With room for 100 images the episode's beginning is refused in part."""
    _, vision = plan.run(replace(options, max_queued_images=100)).modalities
    assert vision.starts[0].policies[0].num_refused > 0


def test_a_tower_without_load_is_left_out(tmp_path: Path) -> None:
    """A trace of texts plans the text tower alone."""
    path = tmp_path / "trace.csv"
    path.write_text("time,tokens\n0,10\n60,10\n")
    options = plan.PlanOptions(trace=path, scale=2.5)
    assert [part.name for part in plan.run(options).modalities] == ["text"]


@pytest.mark.parametrize(
    ("option", "value"), [("scale", 0.0), ("text_rate", -1.0), ("slack_s", -1.0)]
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
    """Neither the cheapest of all nor the one most on time; where none suffices, the latter."""
    points = (point("a", 0.98, 1.0), point("a", 0.992, 3.0), point("a", 1.0, 5.0))
    late = (point("b", 0.5, 1.0), point("b", 0.9, 2.0))
    assert [x.gpu_hours for x in best((*points, *late), 0.99)] == [3.0, 2.0]


def test_a_thinned_series_keeps_the_peaks() -> None:
    """Ten thousand seconds become at most a thousand points, the single peak among them."""
    replicas = np.ones(10_000, np.int64)
    replicas[7_777] = 9
    assert len(thinned(replicas)) <= 1008
    assert max(thinned(replicas)) == 9
