"""The commands, options, settings and files that the Markdown files name exist."""

import ast
import importlib
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from pydantic import BaseModel

from deployments.config import AppConfig
from serve_app.cli import main
from serve_app.settings import read_config

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
OPTION = re.compile(r"--[a-z][a-z-]*")
SETTING = re.compile(r"(?:model|text|vision|router|images|targets|policy)\.[a-z_]+")
FILE = re.compile(r"\w[\w./-]*\.(?:py|yaml|json|npz|md|png|safetensors)")
WRITTEN = {"demo-output/contact-sheet.png", "plan.png"}  # by commands that the README names


def fault(command: str) -> str:
    """Return what a command asks for that does not exist, or nothing."""
    program, *rest = shlex.split(command.removesuffix("&"), comments=True)
    if program not in PROGRAMS:
        return f"unknown program {program}"
    return PROGRAMS[program](rest)


def click_fault(group: click.Group, words: list[str]) -> str:
    name, *rest = words or [""]
    if name not in group.commands:
        return f"no command {name}"
    known = {option for x in group.commands[name].params for option in x.opts}
    return next((f"no option {x}" for x in options(rest) if x not in known), "")


def ours(words: list[str]) -> str:
    """Check a command of this product, and its settings against the configuration."""
    settings = tuple(x for x in words[1:] if "=" in x and not x.startswith("-"))
    try:
        read_config(None, settings)
    except click.UsageError as error:
        return error.message
    return click_fault(main, words)


def other(module: str) -> Callable[[list[str]], str]:
    """Check a command of Ray's own programs."""
    return lambda words: click_fault(importlib.import_module(module).cli, words)


def module(words: list[str]) -> str:
    """Check `python -m benchmarks.NAME`, from its source."""
    if words[:1] != ["-m"]:
        return "not python -m"
    path = ROOT / (words[1].replace(".", "/") + ".py")
    if not path.exists():
        return f"no module {words[1]}"
    known = {*added_options(path), *added_options(ROOT / "benchmarks" / "harness" / "report.py")}
    known.add("--help")
    return next((f"no option {x}" for x in options(words) if x not in known), "")


def added_options(path: Path) -> list[str]:
    """Return the options that a program's source adds to its parser."""
    calls = (x for x in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(x, ast.Call))
    added = (x for x in calls if ast.unparse(x.func).endswith("add_argument"))
    names = (argument for call in added for argument in call.args)
    return [str(x.value) for x in names if isinstance(x, ast.Constant)]


def target(words: list[str]) -> str:
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    return "" if f"{words[0]}:" in {line.split(" ")[0] for line in lines} else f"no {words[0]}"


def extra(words: list[str]) -> str:
    """Check `pip install '.[EXTRA]'`."""
    known = PROJECT["project"]["optional-dependencies"]
    wanted = re.findall(r"\[(.+)\]", words[-1])
    names = [name for group in wanted for name in group.split(",")]
    return next((f"no extra {x}" for x in names if x not in known), "")


def suite(words: list[str]) -> str:
    """Check the files and the marker of a pytest command."""
    files = [x for x in words if "/" in x]
    markers = [words[i + 1] for i, x in enumerate(words) if x == "-m"]
    known = [x.split(":")[0] for x in PROJECT["tool"]["pytest"]["ini_options"]["markers"]]
    return next(
        (f"no {x}" for x in (*files, *markers) if x not in known and not (ROOT / x).exists()), ""
    )


def options(words: list[str]) -> list[str]:
    return [x.split("=")[0] for x in words if x.startswith("--")]


PROGRAMS: dict[str, Callable[[list[str]], str]] = {
    "jina-clip-serve": ours,
    "make": target,
    "pip": extra,
    "pytest": suite,
    "python": module,
    "ray": other("ray.scripts.scripts"),
    "serve": other("ray.serve.scripts"),
    "curl": lambda _words: "",  # run by test_readme.py
    "source": lambda _words: "",
}
NAMED = ("jina-clip-serve ", "make ", "pip install", "python -m", "ray ", "serve ")


def test_every_command_exists(document: Any) -> None:
    """Programs, subcommands, options, settings, modules and extras, in blocks and in sentences."""
    inline = [span for span in document.spans if span.startswith(NAMED)]
    faults = {command: fault(command) for command in (*document.commands, *inline)}
    assert {command: found for command, found in faults.items() if found} == {}


def test_every_option_setting_and_file_exists(document: Any, files: list[Path]) -> None:
    """What stands between backticks as an option, a setting or a file is one."""
    known = {opt for command in main.commands.values() for x in command.params for opt in x.opts}
    known |= {x for path in (ROOT / "benchmarks").rglob("*.py") for x in added_options(path)}
    for span in document.spans:
        if OPTION.match(span):
            assert span.split()[0] in known, span
        if FILE.fullmatch(span):
            assert span in WRITTEN or any(path.match(span) for path in files), span
        elif SETTING.match(span):
            assert setting_exists(span), span


def setting_exists(span: str) -> bool:
    """Tell whether `a.b`, or `a.b=VALUE` with that value, is part of the configuration."""
    key, equals, value = span.partition("=")
    group, name = key.split(".")[:2]
    kind = AppConfig.model_fields[group].annotation
    assert isinstance(kind, type)
    assert issubclass(kind, BaseModel)
    if equals and value.islower():  # N, KEY and the like stand for a value
        read_config(None, (f"{key}={value}",))
    return name in kind.model_fields


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("jina-clip-serve embed", "no command embed"),
        ("jina-clip-serve up --prot 9", "no option --prot"),
        ("jina-clip-serve up text.gpus=1", "text.gpus: Extra inputs are not permitted"),
        ("python -m benchmarks.nothing", "no module benchmarks.nothing"),
        ("python -m benchmarks.wire --widht 4", "no option --widht"),
        ("make coffee", "no coffee"),
        ("pip install '.[nothing]'", "no extra nothing"),
        ("pytest -m gpu tests/nothing.py", "no tests/nothing.py"),
        ("ray up --nothing", "no option --nothing"),
        ("serve nothing", "no command nothing"),
        ("docker run x", "unknown program docker"),
        ("jina-clip-serve up --public &", ""),
    ],
)
def test_a_planted_fault_is_found(command: str, found: str) -> None:
    """Each kind of wrong command is named, and a right one passes."""
    assert fault(command) == found


def test_a_request_can_be_followed_from_the_names_of_files(contributing: Any) -> None:
    """The eight steps name files that lie in the folders of the layout, and each step has one."""
    journey = contributing.prose.partition("A request's journey")[2].partition("## Adding")[0]
    steps = re.findall(r"^\d\. `([\w/.]+)`", journey, re.MULTILINE)
    assert len(steps) == 8
    assert all((ROOT / step).exists() for step in steps)


def test_the_layout_is_that_of_the_tree(contributing: Any) -> None:
    """Every folder and file of the layout exists."""
    (layout,) = (x.code for x in contributing.blocks if "mirrors the packages" in x.code)
    top = ""
    for line in layout.splitlines():
        names = line[:22].split()
        top = names[0] if not line.startswith(" ") else top
        for name in names:
            assert (ROOT / (name if name == top else f"{top}{name}")).exists(), name


def test_every_yaml_file_is_read(document: Any) -> None:
    """A configuration that a document names can at least be parsed."""
    for span in re.findall(r"[\w/]+\.yaml", document.text):
        for path in ROOT.glob(span):
            assert list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
