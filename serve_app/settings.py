"""Reads the configuration that a command is given: a file, then KEY=VALUE settings."""

from pathlib import Path
from typing import Any

import click
import yaml
from pydantic import ValidationError

from deployments.config import AppConfig, ScalingConfig

CORES_PER_ROUTER = 4  # the others are the towers'


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


def with_routers(config: AppConfig, cores: int) -> AppConfig:
    """Give a machine with cores to spare several Routers, where the configuration says nothing.

    Two at least, so that one that dies takes only its own requests along.
    """
    most = cores // CORES_PER_ROUTER
    if most < 2 or config.router.model_fields_set & {"num_replicas", "scaling"}:
        return config
    scaling = ScalingConfig(min_replicas=2, max_replicas=most)
    return config.model_copy(
        update={"router": config.router.model_copy(update={"scaling": scaling})}
    )


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
