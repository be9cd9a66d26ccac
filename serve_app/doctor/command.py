"""`jina-clip-serve doctor`: says what would fail at a start, and what to do about it."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from urllib.request import urlopen

import click
from rich.console import Console
from rich.markup import escape

from deployments.config import AppConfig
from deployments.model.weights.source import WEIGHTS
from serve_app.doctor import machine, published, weights
from serve_app.doctor.finding import Finding, fails, ok
from serve_app.doctor.memory import memory
from serve_app.listening import choose_ingress
from serve_app.settings import read_config

FETCH_S = 20
COLOURS = {"ok": "green", "warning": "yellow", "fails": "red"}


@click.command()
@click.option("--config", "path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535))
@click.option("--public", is_flag=True, help="As `up --public` would listen.")
@click.option("--json", "as_json", is_flag=True)
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
def doctor(
    path: Path | None, port: int, public: bool, as_json: bool, settings: tuple[str, ...]
) -> None:
    """Look at the machine, the weights and the configuration; exit with 1 if anything fails.

    With the published weights in the hub cache or in a folder, it also computes numbers that
    others have published for them.
    """
    progress = Console(stderr=True)
    with progress.status("Looking"):
        findings = list(_examine(path, port, public, settings))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False))
    else:
        _show(findings, Console())
    sys.exit(int(any(finding.status == "fails" for finding in findings)))


def _examine(
    path: Path | None, port: int, public: bool, settings: tuple[str, ...]
) -> Iterator[Finding]:
    try:
        config = read_config(path, settings)
    except click.UsageError as error:
        yield fails("configuration", error.message, "correct the setting that is named")
        return
    yield ok("configuration", "valid, without contradictions")
    ingress, reason = choose_ingress(public, config, port)
    yield ok("ingress", reason)
    yield from machine.ports(ingress)
    yield machine.haproxy()
    yield machine.token()
    yield machine.open_files()
    yield machine.versions()
    yield from weights.s3_credentials(config)
    gpu = machine.gpu(config)
    yield from gpu
    if all(finding.status != "fails" for finding in gpu):
        yield from machine.kernels(config)
        yield from machine.precision(config)
    yield from _weights(config, runnable=all(finding.status != "fails" for finding in gpu))


def _weights(config: AppConfig, runnable: bool) -> Iterator[Finding]:
    source = config.model.source
    folder, finding = weights.locate(source, config.model.revision)
    yield finding
    if folder is None:
        return
    digest = weights.sha256(folder / WEIGHTS)
    yield weights.checksum(source, folder, digest)
    if runnable:
        yield memory(config, folder)
        if digest == weights.PUBLISHED_SHA256:
            yield from published.verify(_encoder(config), _fetch)


def _encoder(config: AppConfig) -> published.Encoder:
    from deployments.model import ClipModel

    model = config.model
    return ClipModel.load(model.source, model.revision, model.device, model.dtype)


def _fetch(url: str) -> bytes:
    with urlopen(url, timeout=FETCH_S) as answer:
        content: bytes = answer.read()
    return content


def _show(findings: list[Finding], console: Console) -> None:
    for finding in findings:
        colour = COLOURS[finding.status]
        status = f"[{colour}]{finding.status:8}[/{colour}]"
        console.print(f"{status}{finding.topic}: {escape(finding.found)}", soft_wrap=True)
        if finding.advice:
            console.print(f"{'':8}{escape(finding.advice)}", soft_wrap=True)
