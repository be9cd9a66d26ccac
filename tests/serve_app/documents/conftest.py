"""The project's Markdown files, and the blocks of code in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serve_app.client import Client

ROOT = Path(__file__).parents[3]
README = ROOT / "README.md"
MOVING = ROOT / "serve_app" / "moving.md"
INLINE = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, and the last line of text before it."""

    line: int
    heading: str
    lead: str
    language: str
    code: str


@dataclass(frozen=True)
class Document:
    """A Markdown file."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def blocks(self) -> list[Block]:
        return list(blocks(self.text))

    @property
    def prose(self) -> str:
        """The text without its fenced blocks."""
        return re.sub(r"^```.*?^```$", "", self.text, flags=re.DOTALL | re.MULTILINE)

    @property
    def spans(self) -> list[str]:
        """What stands between backticks in the text."""
        return INLINE.findall(self.prose)

    @property
    def commands(self) -> list[str]:
        """Every command of its bash blocks."""
        shell = (block for block in self.blocks if block.language == "bash")
        return [command for block in shell for command in commands(block.code)]


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a Markdown text."""
    heading = lead = language = ""
    code: list[str] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```") and code is None:
            language, code = line[3:].strip(), []
        elif line == "```" and code is not None:
            yield Block(number - len(code) - 1, heading, lead, language, "\n".join(code) + "\n")
            code = None
        elif code is not None:
            code.append(line)
        elif line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.strip():
            lead = line.strip()
    assert code is None, "a block is not closed"


def commands(code: str) -> Iterator[str]:
    """Yield the commands of a script, each with all of its lines."""
    command = ""
    for line in code.splitlines():
        command += line + "\n"
        try:
            words = shlex.split(command, comments=True)
        except ValueError:  # an open quotation: the command goes on
            continue
        if words:
            yield command.strip()
        command = ""
    assert not command, f"an open quotation: {command}"


def documents() -> list[Document]:
    """Return the Markdown files of the project, without those of tools and installed packages."""
    return [Document(path) for path in tree() if path.suffix == ".md"]


def tree() -> list[Path]:
    """Return the project's files, without hidden folders and what packaging leaves."""
    tops = (x for x in ROOT.iterdir() if not x.name.startswith(".") and x.suffix != ".egg-info")
    found = [path for top in tops for path in ([top] if top.is_file() else top.rglob("*"))]
    return sorted(path for path in found if path.is_file())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test each document, each command and snippet of the README, each way to move."""
    names = metafunc.fixturenames
    readme = Document(README)
    if "document" in names:
        found = documents()
        metafunc.parametrize("document", found, ids=[x.name for x in found])
    if "readme_command" in names:
        known = readme.commands
        metafunc.parametrize("readme_command", known, ids=[x.split("#")[0][:60] for x in known])
    if "readme_snippet" in names:
        snippets = [x for x in readme.blocks if x.language == "python"]
        metafunc.parametrize("readme_snippet", snippets, ids=[f"line {x.line}" for x in snippets])


@pytest.fixture
def readme() -> Document:
    """The README."""
    return Document(README)


@pytest.fixture
def contributing() -> Document:
    """What somebody who changes the product reads."""
    return Document(ROOT / "CONTRIBUTING.md")


@pytest.fixture(scope="session")
def files() -> list[Path]:
    """The project's files."""
    return tree()


@pytest.fixture
def moving() -> dict[str, list[Block]]:
    """The blocks of each way to move here, by heading."""
    ways: dict[str, list[Block]] = {}
    for block in Document(MOVING).blocks:
        ways.setdefault(block.heading, []).append(block)
    return ways


@pytest.fixture
def execute() -> Iterator[Any]:
    """A function that runs a snippet and returns its names; closes the clients that it makes."""
    clients: list[Client] = []

    def run(code: str) -> dict[str, Any]:
        names: dict[str, Any] = {}
        exec(compile(code, "snippet", "exec"), names)
        clients.extend(value for value in names.values() if isinstance(value, Client))
        return names

    yield run
    for client in clients:
        client.close()


@pytest.fixture
def split() -> Any:
    """The function that finds the commands of a script."""
    return lambda code: list(commands(code))
