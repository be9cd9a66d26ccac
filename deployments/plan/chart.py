"""Draws a plan as a PNG: replicas over time, and with a sweep the frontier of the policies."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deployments.plan.report import ModalityReport, PlanReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"work": "#1a7f5a", "request count": "#d1603d", "bound": "#4a4e57"}
DAY_S = 86_400.0


def plot(report: PlanReport, path: Path) -> None:
    """Draw a row for each modality.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("--plot needs matplotlib: pip install 'jina-clip-serve[plan]'") from error
    swept = any(modality.frontier for modality in report.modalities)
    rows = len(report.modalities)
    figure = Figure(figsize=(14 if swept else 11, 0.6 + 3.7 * rows), layout="constrained")
    ratios = [2.3, 1.0] if swept else [1.0]
    axes = figure.subplots(rows, len(ratios), squeeze=False, width_ratios=ratios)
    for row, modality in zip(axes, report.modalities, strict=True):
        _draw_replicas(row[0], modality, report.duration_s)
        if swept:
            _draw_frontier(row[1], modality)
    figure.suptitle(f"{report.traffic}   (on time: {report.objective})", fontsize=11)
    figure.savefig(path, dpi=150, format="png")


def _draw_replicas(axes: "Axes", modality: ModalityReport, duration_s: float) -> None:
    unit_s, unit = (DAY_S, "days") if duration_s > 2 * DAY_S else (60.0, "minutes")
    count = len(modality.bound.replicas)
    edges = np.append(np.arange(count) * modality.interval_s, duration_s) / unit_s
    axes.stairs(
        modality.bound.replicas,
        edges,
        fill=True,
        color="#d9dce3",
        label=f"clairvoyant bound: {modality.bound.gpu_hours:,.0f} GPU-hours",
    )
    for policy in modality.policies[::-1]:
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
    axes.set_title(f"{modality.name}: replicas over time", loc="left", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    _tidy(axes)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * 1.3)


def _draw_frontier(axes: "Axes", modality: ModalityReport) -> None:
    for name in ("request count", "work"):
        tried = [x for x in modality.frontier if x.name == name]
        late = [max(1 - x.share_on_time, 1e-4) for x in tried]
        hours = [x.gpu_hours for x in tried]
        axes.scatter(hours, late, s=16, color=COLOURS[name], alpha=0.75, linewidths=0)
    for policy in modality.policies:
        late_share = max(1 - policy.share_on_time, 1e-4)
        colour = COLOURS[policy.name]
        axes.scatter(policy.gpu_hours, late_share, s=90, facecolors="none", edgecolors=colour)
    axes.axvline(modality.bound.gpu_hours, color=COLOURS["bound"], linestyle="--", linewidth=1)
    axes.axhline(0.01, color=COLOURS["bound"], linestyle=":", linewidth=1)
    axes.set(yscale="log", xlabel="GPU-hours", ylabel="items late")
    axes.set_xlim(left=0)
    axes.set_ylim(1, 8e-5)
    axes.set_yticks([1, 0.1, 0.01, 1e-3, 1e-4], ["100%", "10%", "1%", "0.1%", "0.01%\nor less"])
    title = f"{modality.name}: settings tried (rings: defaults; dashes: bound)"
    axes.set_title(title, loc="left", fontsize=10)
    axes.minorticks_off()
    _tidy(axes)


def _tidy(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.tick_params(labelsize=8)
