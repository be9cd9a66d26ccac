"""`jina-clip-serve bulk`: from files to vectors."""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from deployments.model.errors import OptionError

if TYPE_CHECKING:
    from deployments.bulk import BulkJob, EmbedOptions, JobProgress

EXIT_ROWS_FAILED = 3
EXIT_TOO_MANY_ERRORS = 4
EXIT_FILES_LOST = 5
SHOWN_FILES = 20
HELPERS_CPUS = 1  # writing
REFRESH_PER_S = 2  # of the terminal; at 12 it took 9% of the driver's time
LOG_PERIOD_S = 30.0


@click.command()
@click.argument("source", metavar="INPUT")
@click.argument("output")
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--config", "path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--text", help="Column of the texts; by default text, if there is one.")
@click.option("--image", help="Column of the images; by default image, if there is one.")
@click.option("--id", "identifier", help="Column to keep that names the row; databases need it.")
@click.option("--keep", multiple=True, help="Another column to keep; may be repeated.")
@click.option("--dimensions", type=click.IntRange(1))
@click.option("--task", type=click.Choice(["retrieval.query"]))
@click.option(
    "--precision",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "float16", "int8", "binary"]),
)
@click.option("--truncate", is_flag=True, help="Cut long texts instead of giving them an error.")
@click.option("--text-replicas", default="1", show_default=True, metavar="A:B")
@click.option("--vision-replicas", default="1", show_default=True, metavar="A:B")
@click.option("--workers", default="1", show_default=True, metavar="A:B", help="CPU stage.")
@click.option(
    "--block-rows", type=click.IntRange(1), help="By default 512; 4096 for texts alone on GPUs."
)
@click.option(
    "--blocks-ahead",
    type=click.IntRange(0),
    help="Blocks under way beyond one a replica; fewer cost less when the job is killed.",
)
@click.option("--max-errors", type=click.IntRange(0), help="Stop above so many rows with errors.")
@click.option(
    "--ignore",
    "ignored",
    multiple=True,
    metavar="PATTERN",
    help="Names of files of the input to pass over, as *.txt; may be repeated.",
)
@click.option("--resume", is_flag=True, help="Continue the job in OUTPUT.")
@click.option(
    "--reembed",
    "replaced",
    metavar="OLD_OUTPUT",
    help="Copy what it has of these vectors, compare OUTPUT with it, and write a manifest.",
)
@click.option("--dry-run", is_flag=True, help="Sample the input and say how long it will take.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.option("--stats", is_flag=True, help="Print Ray Data's account of its stages, at the end.")
@click.option("--address", help="A running Ray cluster; by default Ray starts on this machine.")
@click.pass_context
def bulk(
    context: click.Context,
    /,
    source: str,
    output: str,
    settings: tuple[str, ...],
    path: Path | None,
    text: str | None,
    image: str | None,
    identifier: str | None,
    keep: tuple[str, ...],
    block_rows: int | None,
    blocks_ahead: int | None,
    max_errors: int | None,
    ignored: tuple[str, ...],
    resume: bool,
    replaced: str | None,
    dry_run: bool,
    as_json: bool,
    stats: bool,
    address: str | None,
    **options: str,
) -> None:
    """Embed the rows of INPUT into OUTPUT: a folder of parquet files, or a database.

    INPUT is Parquet, ORC, Feather, Lance, Delta, JSON, CSV, images or WebDataset tars, packed or
    not: a file, folder or glob, local or s3://. Settings are those of `up`:
    model.source=jinaai/jina-clip-v2 text.num_gpus=1

    OUTPUT is a folder or s3:// prefix, DATA.lance, postgresql://HOST/DB?table=NAME (pgvector) or
    qdrant://HOST:6333/COLLECTION; databases hold each row once under its --id.

    Exit codes: 0 all rows have their vectors, 3 some have an error instead or no id of their own,
    4 stopped by --max-errors, 5 files of the input were left out (see --ignore), 1 the job cannot
    run, 2 the command line is wrong.
    """
    from deployments.bulk import TooManyErrorsError, prepare

    console = Console(stderr=True)
    try:
        chosen = embed_options(path, settings, text, image, options)
        with ray_running(chosen, address):
            how = keep, block_rows, max_errors, blocks_ahead, ignored, identifier, replaced
            job = prepare(source, output, chosen, *how)
            figures = work(job, dry_run, resume, replaced, console)
    except TooManyErrorsError as error:
        console.print(f"Stopped: {error}", markup=False)
        context.exit(EXIT_TOO_MANY_ERRORS)
    if stats:
        click.echo("\n".join(job.stats), err=True)
    click.echo(json.dumps(figures) if as_json else report(figures))
    if figures.get("total_errors") or figures.get("missing_rows"):
        context.exit(EXIT_ROWS_FAILED)
    if job.plan.lost:
        context.exit(EXIT_FILES_LOST)


def work(
    job: "BulkJob", dry_run: bool, resume: bool, replaced: str | None, console: Console
) -> dict[str, Any]:
    """Estimate a job or run it; returns the figures that are printed."""
    from deployments.bulk import estimate, reembed

    if replaced is not None:
        reembed.check(replaced, job.output, job.identity, job.key)
    say_lost(job.plan.lost, console)
    if dry_run:
        return asdict(estimate(job))
    figures = run(job, resume, console).summary()
    if replaced is not None:
        figures["reembed"] = asdict(reembed.finish(replaced, job.output, job.key))
    return figures


def say_lost(lost: Mapping[str, str], console: Console) -> None:
    """Name the files whose rows will be missing, or some of them, before the job runs."""
    for path, fault in list(lost.items())[:SHOWN_FILES]:
        console.print(f"Left out: {path}: {fault}", markup=False, soft_wrap=True)
    if len(lost) > SHOWN_FILES:
        console.print(f"Left out: {len(lost) - SHOWN_FILES:,} more files", markup=False)


def embed_options(
    path: Path | None,
    settings: tuple[str, ...],
    text: str | None,
    image: str | None,
    options: dict[str, str],
) -> "EmbedOptions":
    """Put the command line and the configuration together."""
    from deployments.bulk import EmbedOptions, PoolSize
    from serve_app.settings import read_config

    app = read_config(path, settings)
    try:
        pools = {
            name: PoolSize.parse(options.pop(name))
            for name in ("text_replicas", "vision_replicas", "workers")
        }
    except OptionError as error:
        raise click.UsageError(str(error)) from error
    images = app.images.model_copy(update={"local_files": True})
    return EmbedOptions.model_validate(
        {"text": text, "image": image, "app": app, "images": images, **pools, **options}
    )


@contextmanager
def ray_running(options: "EmbedOptions", address: str | None) -> Iterator[None]:
    """Use the cluster at an address or the Ray that runs already, or start one for the time.

    What Ray prints meanwhile, of lost workers for instance, goes to stderr: stdout is for the
    summary.
    """
    import ray

    from deployments.errors import ServiceError

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    if ray.is_initialized():
        yield
        return
    with redirect_stdout(sys.stderr):
        if address is None:
            # A local cluster has as many CPUs as the stages ask for: on a small machine they share.
            cpus = max(needed_cpus(options), os.cpu_count() or 1)
            ray.init(
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            try:
                ray.init(address, logging_level=logging.ERROR)
            except ConnectionError as error:
                raise ServiceError(f"no Ray cluster answers at {address}: {error}") from error
        try:
            yield
        finally:
            ray.shutdown()


def needed_cpus(options: "EmbedOptions") -> int:
    """Return the CPUs that all stages reserve at their largest, rounded up."""
    cpus = options.workers.max + HELPERS_CPUS
    unknown = options.text is None and options.image is None  # until the input is looked at
    if unknown or options.text is not None:
        cpus += int(-(-options.text_replicas.max * options.app.text.num_cpus // 1))
    if unknown or options.image is not None:
        cpus += int(-(-options.vision_replicas.max * options.app.vision.num_cpus // 1))
    return cpus


def run(job: "BulkJob", resume: bool, console: Console) -> "JobProgress":
    """Run a job; a terminal shows one line of progress that moves, a log gets one now and then."""
    start = f"Starting {job.options.app.model.source}"
    if console.is_terminal:
        with console.status(start, refresh_per_second=REFRESH_PER_S) as status:
            return job.run(resume, lambda progress: status.update(progress.line()))
    console.print(start, markup=False)
    logged_s = time.monotonic()

    def log(progress: "JobProgress") -> None:
        nonlocal logged_s
        if time.monotonic() > logged_s + LOG_PERIOD_S:
            logged_s = time.monotonic()
            console.print(progress.line(), markup=False, soft_wrap=True)

    return job.run(resume, log)


def report(figures: dict[str, object]) -> str:
    """Return figures for people, one a line."""
    return "\n".join(f"{name}: {_shown(value)}" for name, value in figures.items())


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items())
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
