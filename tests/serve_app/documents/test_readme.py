"""The README's commands and snippets, run as they stand."""

import gzip
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from serve_app.gallery import FOLDER
from serve_app.listening import free_port

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
PICTURE = "https://example.com/apple.jpg"
LOCAL = "http://127.0.0.1:8000"
LANGUAGES = {"bash", "python", ""}
DRAWING = "\u2500\u2500>"  # the graph
MAX_LINES, MAX_COLUMNS = 200, 99

# Commands that cannot run here, by how they begin. test_commands.py still checks their arguments.
NOT_RUN = {
    "make demo": "it installs; test_demo.py runs the command behind it",
    "make test": "it would run this test",
    "pip install ": "needs the network",
    "jina-clip-serve up": "the fixture `service` stands for it; test_up.py runs it",
    "ray up ": "needs a cloud account",
    "serve deploy ": "needs a cluster",
    "serve run ": "needs a Ray of its own; test_app.py builds the application from the file",
}
# What is replaced in a command or snippet that runs, and why.
SMALLER = {
    " --scale 12": " --scale 12 --trace traffic.csv",  # the week takes a minute
    "--config ": f"--port {free_port()} --config ",  # 8000 may be taken
    '"jinaai/jina-clip-v2", device="cuda", dtype="bfloat16"': '"demo"',  # needs a hub and a GPU
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the README names."""
    (tmp_path / "serve_app").symlink_to(ROOT / "serve_app")
    Image.open(FOLDER / "red-apple.png").convert("RGB").save(tmp_path / "apple.jpg")
    texts = ["a red apple", "\u8d64\u3044\u308a\u3093\u3054"]
    pq.write_table(pa.table({"id": [1, 2], "text": texts}), tmp_path / "data.parquet")
    lines = [f"{second},{100 + second % 7},{second % 5}" for second in range(300)]
    traffic = "\n".join(["time,tokens,images", *lines])
    (tmp_path / "traffic.csv").write_text(traffic)
    (tmp_path / "traffic.csv.gz").write_bytes(gzip.compress(traffic.encode()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def adapted(service: Any, code: str) -> str:
    """Return code that asks the service of the test."""
    for old, new in {LOCAL: service.url, PICTURE: service.image_url("red-apple.png")}.items():
        code = code.replace(old, new)
    for old, new in SMALLER.items():
        code = code.replace(old, new)
    return code


def run(command: str) -> str:
    """Run a command in a shell; return what it prints."""
    script = f"set -e; PATH={shlex.quote(str(BIN))}:$PATH; {command}"
    done = subprocess.run(
        ["bash", "-c", script], check=False, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_command_runs(service: Any, place: Path, readme_command: str) -> None:
    """Each command of the README ends well, or stands in the list of those that cannot run here."""
    if reason := next((NOT_RUN[x] for x in NOT_RUN if readme_command.startswith(x)), ""):
        pytest.skip(reason)
    printed = run(adapted(service, readme_command))
    program, *rest = shlex.split(readme_command, comments=True)
    kind = program if program == "curl" else rest[0]
    CHECKS[kind](printed, place, rest)


def answered(printed: str, _place: Path, _rest: list[str]) -> None:
    """Two texts of one meaning and the picture are nearer to each other than chance."""
    rows = np.array([row["embedding"] for row in json.loads(printed)["data"]])
    assert rows.shape == (3, 64)
    assert (rows @ rows[2])[:2].min() > 0.6


def embedded(printed: str, place: Path, rest: list[str]) -> None:
    """The job has written a vector for each row, or has said what it would take."""
    if "--dry-run" in rest:
        assert "rows" in printed
        assert not (place / "vectors").exists()
        return
    table = pq.read_table(place / "vectors")
    assert table.column("id").to_pylist() == [1, 2]
    assert np.isfinite(np.stack(table.column("text_embedding").to_numpy())).all()


def planned(printed: str, place: Path, rest: list[str]) -> None:
    """The policy stands beside its rivals, and the chart is drawn where it was asked for."""
    assert "bound" in printed
    assert ("--plot" in rest) == (place / "plan.png").exists()


def examined(printed: str, _place: Path, _rest: list[str]) -> None:
    """The doctor has found the shipped weights."""
    assert "weights" in printed


CHECKS = {"curl": answered, "bulk": embedded, "plan": planned, "doctor": examined}


def test_a_snippet_runs(service: Any, place: Path, execute: Any, readme_snippet: Any) -> None:
    """Each Python block runs by itself and gives rows of length 1."""
    names = execute(adapted(service, readme_snippet.code))
    np.testing.assert_allclose(np.linalg.norm(names["rows"], axis=1), 1, atol=1e-5)


def test_every_block_is_a_drawing_or_is_run(readme: Any) -> None:
    """A block in another language would be run by nothing; one without is a drawing."""
    assert {block.language for block in readme.blocks} == LANGUAGES
    for block in (x for x in readme.blocks if not x.language):
        assert DRAWING in block.code, block


def test_no_exception_is_left_over(readme: Any) -> None:
    """Each command in the list, and each replacement, still stands in the README."""
    for start in NOT_RUN:
        assert any(command.startswith(start) for command in readme.commands), start
    for old in (*SMALLER, LOCAL, PICTURE):
        assert old in readme.text, old


@pytest.mark.parametrize(
    "command", ["jina-clip-serve bulk nothing.parquet vectors/", "curl --fail http://127.0.0.1:9/"]
)
def test_a_command_that_fails_is_noticed(place: Path, command: str) -> None:
    """The runner is not satisfied by anything."""
    with pytest.raises(AssertionError):
        run(command)


def test_a_command_ends_where_its_quotation_does(split: Any) -> None:
    """Comments are no commands, and a body over several lines belongs to its command."""
    script = "# nothing\na b  # c\n\ncurl x -d '{\n  \"y\": [1]}'\nd &\n"
    assert split(script) == ["a b  # c", "curl x -d '{\n  \"y\": [1]}'", "d &"]


def test_the_readme_can_be_read(readme: Any) -> None:
    """It stays short enough to read in one go, in columns of any editor."""
    lines = readme.text.splitlines()
    assert len(lines) <= MAX_LINES
    assert max(map(len, lines)) <= MAX_COLUMNS
