"""`make test` fails where one of its two processes does, and shows what both said."""

import signal
import sys
from pathlib import Path

import pytest

from tests.halves import HALVES, run

ROOT = Path(__file__).parents[1]
STAND_IN = "import os, sys; print(*sys.argv[1:], flush=True); exec(sys.argv[2])"


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        ("sys.exit(0)", "sys.exit(0)", 0),
        ("sys.exit(0)", "sys.exit(1)", 1),
        ("sys.exit(5)", "sys.exit(0)", 5),  # pytest's own where it found no test
        ("sys.exit(0)", "os.kill(os.getpid(), 9)", -signal.SIGKILL),
    ],
)
def test_each_half_counts_and_is_shown(capfd, first, second, code):
    """The exit code is that of a half that failed, or whose process was killed."""
    halves = ("one", first), ("two", second)
    assert run(halves, (sys.executable, "-c", STAND_IN)) == code
    printed = capfd.readouterr().out
    for name, program in halves:
        assert f"\n{name} {program}\n" in f"\n{printed}"


def test_each_file_of_tests_is_in_one_half():
    """None is left out, and none runs twice."""
    files = [path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(files) > 100
    for file in files:
        assert sum(takes(half, file) for half in HALVES) == 1, file


def takes(half, file: Path) -> bool:
    """Whether pytest finds a file with these arguments."""
    folders = [argument for argument in half if not argument.startswith("-")]
    left_out = [argument.removeprefix("--ignore=") for argument in half if argument not in folders]
    return any(map(file.is_relative_to, folders)) and not any(map(file.is_relative_to, left_out))
