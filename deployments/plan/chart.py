"""Draws a plan as a PNG: replicas over time, and against all the frontier of the policies."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deployments.plan.report import ModalityReport, PlanReport, StartReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "rehearsed": "#1a7f5a",
    "Ray count": "#d1603d",
    "HPA utilization": "#7b61b5",
    "KEDA rate": "#c9a227",
    "queue length": "#3b7dd8",
    "token velocity": "#c44e8a",
    "forecast": "#6b8e23",
    "Chiron": "#8c6d4f",
}
BOUND = "#4a4e57"
DAY_S = 86_400.0
FRONTIER_BOUNDS = 8  # what costs more than so many times the bound is not drawn


def plot(report: PlanReport, path: Path) -> None:
    """Draw a row for each modality.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("--plot needs matplotlib: pip install 'jina-clip-serve[plan]'") from error
    tried = any(len(start.tried) > 1 for part in report.modalities for start in part.starts)
    starts = len(report.modalities[0].starts) if tried else 0
    rows, columns = len(report.modalities), 1 + starts
    size = (11 if not tried else 6 + 4.2 * starts, 0.6 + 3.7 * rows)
    figure = Figure(figsize=size, layout="constrained")
    ratios = [1.5, *[1.0] * starts]
    axes = figure.subplots(rows, columns, squeeze=False, width_ratios=ratios)
    for row, modality in zip(axes, report.modalities, strict=True):
        _draw_replicas(row[0], modality, report.duration_s)
        for place, start in zip(row[1:], modality.starts, strict=False):
            _draw_frontier(place, modality.name, start)
    if tried:
        axes[0][1].legend(fontsize=7, frameon=False, loc="upper right")
    figure.suptitle(f"{report.traffic}   (on time: {report.objective})", fontsize=11)
    figure.savefig(path, dpi=150, format="png")


def _draw_replicas(axes: "Axes", modality: ModalityReport, duration_s: float) -> None:
    start = modality.starts[0]
    unit_s, unit = (DAY_S, "days") if duration_s > 2 * DAY_S else (60.0, "minutes")
    count = len(start.bound.replicas)
    edges = np.append(np.arange(count) * modality.interval_s, duration_s) / unit_s
    axes.stairs(
        start.bound.replicas,
        edges,
        fill=True,
        color="#d9dce3",
        label=f"clairvoyant bound: {start.bound.gpu_hours:,.0f} GPU-hours",
    )
    for policy in start.policies[1::-1]:
        label = f"{policy.name}: {policy.gpu_hours:,.0f} GPU-hours, {policy.share_on_time:.1%}"
        axes.stairs(
            policy.replicas,
            edges,
            color=COLOURS[policy.name],
            linewidth=1.1,
            baseline=None,
            label=f"{label} on time",
        )
    axes.set(xlim=(0, edges[-1]), ylim=(0, None), xlabel=unit, ylabel="replicas")
    title = f"{modality.name}: replicas over time, a start-up of {start.startup_s:g} s"
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    _tidy(axes)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * 1.3)


def _draw_frontier(axes: "Axes", name: str, start: StartReport) -> None:
    for policy in start.policies:
        tried = [x for x in start.tried if x.name == policy.name]
        late = [max(1 - x.share_on_time, 1e-4) for x in tried]
        hours = [x.gpu_hours for x in tried]
        colour = COLOURS[policy.name]
        axes.scatter(hours, late, s=12, color=colour, alpha=0.75, linewidths=0, label=policy.name)
    ours = start.policies[0]
    at = ours.gpu_hours, max(1 - ours.share_on_time, 1e-4)
    axes.scatter(*at, s=90, marker="*", color=COLOURS[ours.name], zorder=3)
    axes.axvline(start.bound.gpu_hours, color=BOUND, linestyle="--", linewidth=1)
    axes.axhline(0.01, color=BOUND, linestyle=":", linewidth=1)
    axes.set(yscale="log", xlabel="GPU-hours", ylabel="items late")
    axes.set_xlim(0, FRONTIER_BOUNDS * start.bound.gpu_hours)
    axes.set_ylim(1, 8e-5)
    axes.set_yticks([1, 0.1, 0.01, 1e-3, 1e-4], ["100%", "10%", "1%", "0.1%", "0.01%\nor less"])
    title = f"{name}: settings tried, {start.startup_s:g} s (star: ours, dashes: bound)"
    axes.set_title(title, loc="left", fontsize=9)
    axes.minorticks_off()
    _tidy(axes)


def _tidy(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.tick_params(labelsize=8)
