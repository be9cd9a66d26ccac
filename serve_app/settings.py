"""Reads the configuration that a command is given: a file, then KEY=VALUE settings."""

from pathlib import Path
from typing import Any

import click
import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

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
        raise click.UsageError("; ".join(map(_told, error.errors()))) from None


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


def with_batches(config: AppConfig, folder: str) -> AppConfig:
    """Keep files and batches in a folder."""
    batches = config.batches.model_copy(update={"folder": folder})
    return config.model_copy(update={"batches": batches})


def _told(fault: ErrorDetails) -> str:
    place = ".".join(map(str, fault["loc"])) or "config"
    return f"{place}: {fault['msg'].removeprefix('Value error, ')}"


# Any: YAML before validation.
def _arguments(path: Path) -> dict[str, Any]:
    """Return the builder's arguments of a Serve config file, or a file that is just those."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{path} is not text in UTF-8") from error
    file = _mapping(_yaml(text, str(path)), str(path))
    if "applications" not in file:
        return file
    applications = file["applications"]
    if not isinstance(applications, list) or len(applications) != 1:
        raise click.UsageError(f"{path}: applications must be a list of one application")
    application = _mapping(applications[0], f"{path}: applications[0]")
    return _mapping(application.get("args"), f"{path}: args")


def _yaml(text: str, place: str) -> object:
    """Parse YAML; the message says in one line where it breaks."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise click.UsageError(f"{place} is not YAML{where}: {problem}") from error
    except RecursionError:
        raise click.UsageError(f"{place} is not YAML: nested too deeply") from None
    except ValueError as error:  # a date such as 2026-13-45
        raise click.UsageError(f"{place} is not YAML: {error}") from error


def _mapping(value: object, place: str) -> dict[str, Any]:
    """Return a mapping, empty for nothing; refuse anything else by its place."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise click.UsageError(f"{place} must hold a mapping, not {type(value).__name__}")
    return value


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
    place[last] = _yaml(value, repr(setting))
