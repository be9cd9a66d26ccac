"""The command line: `jina-clip-serve up | demo | bulk | doctor | plan`."""

import os
import signal
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from rich.console import Console

from deployments.model.errors import EmbeddingError
from serve_app import tracing
from serve_app.bulk import bulk
from serve_app.doctor.command import doctor
from serve_app.plan import plan
from serve_app.settings import read_config, with_batches, with_routers


class Commands(click.Group):
    """Commands whose errors are one message, not a traceback."""

    def invoke(self, context: click.Context) -> object:
        """Run the command.

        Raises:
            click.ClickException: in place of our errors and the system's.
        """
        try:
            return super().invoke(context)
        except BrokenPipeError:  # whoever read our output has left; click ends quietly
            raise
        except (EmbeddingError, OSError) as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Commands)
@click.version_option(package_name="jina-clip-serve")
def main() -> None:
    """Serve jina-clip-v2 on Ray Serve."""


@main.command()
@click.option("--config", "path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535))
@click.option("--public", is_flag=True, help="Listen on every address without API keys.")
@click.option("--trace", type=click.FloatRange(0, 1), help="Share of requests to trace.")
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
def up(
    path: Path | None, port: int, public: bool, trace: float | None, settings: tuple[str, ...]
) -> None:
    """Start the service on this machine, in the foreground; Ctrl-C stops it.

    Settings override the configuration file: model.source=jinaai/jina-clip-v2
    text.num_gpus=0.5 vision.num_gpus=0.5
    """
    from serve_app.listening import (
        LOOPBACK,
        choose_ingress,
        describe_mode,
        prepare_environment,
    )
    from serve_app.server import running

    config = with_routers(read_config(path, settings), os.cpu_count() or 1)
    ingress, reason = choose_ingress(public, config, port)
    prepare_environment(ingress)
    console = Console(stderr=True)
    console.print(f"{reason}.", describe_mode(ingress))
    if trace is not None:
        console.print(tracing.prepare(trace))
    with suppress(KeyboardInterrupt), ExitStack() as stack:
        if ingress.host == LOOPBACK and config.batches.folder is None:
            folder = stack.enter_context(TemporaryDirectory(prefix="jina-clip-batches-"))
            config = with_batches(config, folder)
        with console.status(f"Starting {config.model.source}"):
            url = stack.enter_context(running(config, ingress))
        for name in (signal.SIGINT, signal.SIGTERM):  # after Ray has set handlers of its own
            signal.signal(name, signal.default_int_handler)
        from serve_app import launch  # imports Ray Serve, which has read the environment by now

        page = f", a page to try it on at {url}/" if config.router.playground else ""
        console.print(f"Ready: {url}/v1/embeddings{page} (Ctrl-C stops it)")
        try:
            threading.Event().wait()
        finally:
            console.print("Stopping: requests under way are finished, new ones refused")
            launch.drain(config.router.timeout_s)


@main.command()
@click.option("--output", default="demo-output", show_default=True, type=click.Path(path_type=Path))
def demo(output: Path) -> None:
    """Start the service on the shipped checkpoint, ask it once, show what it found, stop it."""
    from serve_app import demo as demonstration

    demonstration.run(output, Console())


main.add_command(doctor)
main.add_command(bulk)
main.add_command(plan)
