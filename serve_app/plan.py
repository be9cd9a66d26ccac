"""`jina-clip-serve plan`: simulates the autoscaling policy on traffic, beside others."""

import json
from pathlib import Path
from typing import Literal

import click
from rich.console import Console

from deployments import plan as planner
from deployments.config import RouterConfig

PATH = click.Path(dir_okay=False, path_type=Path)
POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command()
@click.option("--trace", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--scale", default=1.0, show_default=True, type=POSITIVE, help="Times the traffic.")
@click.option("--text-rate", default=600_000.0, show_default=True, type=POSITIVE, help="Tokens/s.")
@click.option("--image-rate", default=430.0, show_default=True, type=POSITIVE, help="Images/s.")
@click.option("--generate", "generated", type=click.Choice(["week", "bursts"]), default="week")
@click.option("--seed", default=0, show_default=True, help="Of what is generated.")
@click.option(
    "--startup",
    "startups_s",
    multiple=True,
    type=click.FloatRange(1),
    help="Seconds that a replica takes to start; several are planned for in turn.  [default: 40]",
)
@click.option("--on-time", default=0.99, show_default=True, type=click.FloatRange(0.5, 0.9999))
@click.option(
    "--against",
    type=click.Choice(["defaults", "all"]),
    default="defaults",
    show_default=True,
    help="Ray Serve's defaults, or all policies over their settings and start-ups; minutes.",
)
@click.option("--json", "as_json", is_flag=True)
@click.option("--plot", "chart", type=PATH, help="Draw it to a PNG.")
def plan(
    trace: Path | None,
    scale: float,
    text_rate: float,
    image_rate: float,
    generated: Literal["week", "bursts"],
    seed: int,
    startups_s: tuple[float, ...],
    on_time: float,
    against: Literal["defaults", "all"],
    as_json: bool,
    chart: Path | None,
) -> None:
    """Simulate replicas on a trace (CSV: time, tokens, images), or on generated traffic.

    Prints replicas over time, GPU-hours, delays and refusals for this product's policy, for those
    that others run and for a planner that knows the future.
    """
    if chart is not None and not chart.parent.is_dir():  # before a simulation of minutes
        raise click.UsageError(f"--plot {chart}: there is no folder {chart.parent}")
    router = RouterConfig()
    options = planner.PlanOptions(
        trace=trace,
        scale=scale,
        text_rate=text_rate,
        image_rate=image_rate,
        generated=generated,
        seed=seed,
        startups_s=startups_s or (planner.STARTUPS_S if against == "all" else (40.0,)),
        on_time=on_time,
        max_images_per_chunk=router.max_images_per_chunk,
        max_queued_tokens=router.num_replicas * router.max_queued_tokens,
        max_queued_images=router.num_replicas * router.max_queued_images,
        against=against,
    )
    progress = Console(stderr=True)
    try:
        with progress.status("Simulating"):
            report = planner.run(options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        Console().print(report)
    if chart is not None:
        try:
            planner.plot(report, chart)
        except ImportError as error:
            raise click.UsageError(str(error)) from error
        progress.print(f"Chart: {chart}")
