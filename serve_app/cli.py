"""The command line: `jina-clip-serve up | demo | plan`."""

import signal
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import click
import yaml
from pydantic import ValidationError
from rich.console import Console

from deployments.config import AppConfig
from serve_app.plan import plan


@click.group()
@click.version_option(package_name="jina-clip-serve")
def main() -> None:
    """Serve jina-clip-v2 on Ray Serve."""


@main.command()
@click.option("--config", "path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535))
@click.option("--public", is_flag=True, help="Listen on every address without API keys.")
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
def up(path: Path | None, port: int, public: bool, settings: tuple[str, ...]) -> None:
    """Start the service on this machine, in the foreground; Ctrl-C stops it.

    Settings override the configuration file: model.source=jinaai/jina-clip-v2
    text.num_gpus=0.5 vision.num_gpus=0.5
    """
    from serve_app.server import choose_ingress, prepare_environment, running

    config = read_config(path, settings)
    ingress, reason = choose_ingress(public, bool(config.api_keys), port)
    prepare_environment(ingress)
    console = Console(stderr=True)
    console.print(reason)
    with suppress(KeyboardInterrupt), ExitStack() as stack:
        with console.status(f"Starting {config.model.source}"):
            url = stack.enter_context(running(config, ingress))
        for name in (signal.SIGINT, signal.SIGTERM):  # after Ray has set handlers of its own
            signal.signal(name, signal.default_int_handler)
        console.print(f"Ready: {url}/v1/embeddings (Ctrl-C stops it)")
        threading.Event().wait()


@main.command()
@click.option("--output", default="demo-output", show_default=True, type=click.Path(path_type=Path))
def demo(output: Path) -> None:
    """Start the service on the shipped checkpoint, ask it once, show what it found, stop it."""
    from serve_app import demo as demonstration

    demonstration.run(output, Console())


main.add_command(plan)


def read_config(path: Path | None, settings: tuple[str, ...] = ()) -> AppConfig:
    """Read a Serve config file's arguments, apply KEY=VALUE settings, and validate.

    Raises:
        click.UsageError: an unknown key or a bad value, with its place.
    """
    data = _arguments(path) if path is not None else {}
    for setting in settings:
        _apply(data, setting)
    try:
        return AppConfig.model_validate(data)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors()]
        raise click.UsageError("; ".join(faults)) from None


# Any: YAML before validation.
def _arguments(path: Path) -> dict[str, Any]:
    """Return the builder's arguments of a Serve config file, or a file that is just those."""
    file = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(file, dict):
        raise click.UsageError(f"{path} must hold a mapping, not {type(file).__name__}")
    if "applications" not in file:
        return file
    arguments: dict[str, Any] = file["applications"][0].get("args", {})
    return arguments


def _apply(data: dict[str, Any], setting: str) -> None:
    """Put one KEY=VALUE into its place."""
    key, equals, value = setting.partition("=")
    if not equals:
        raise click.UsageError(f"{setting!r} is not KEY=VALUE")
    *parents, last = key.split(".")
    place = data
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise click.UsageError(f"{setting!r}: {parent} is a value, not a group of settings")
    place[last] = yaml.safe_load(value)
