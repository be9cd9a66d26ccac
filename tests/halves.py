"""Runs the tests in two processes side by side, as `make test` does: `python -m tests.halves`.

Starting services and jobs is mostly waiting, so that one process leaves half of two cores idle.
The halves are folders, not a queue: each process has its tests in their order, whatever the other
one does. Of one half the output is shown as it comes, of the other at the end.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SERVICE = "tests/serve_app"
HALVES = ((SERVICE,), ("tests", f"--ignore={SERVICE}"))
PYTEST = (sys.executable, "-m", "coverage", "run", "--parallel-mode", "-m", "pytest")


def run(halves: Sequence[Sequence[str]] = HALVES, pytest: Sequence[str] = PYTEST) -> int:
    """Run pytest on each half; return 0 where all of them passed, or the first other exit code."""
    shown, *rest = halves
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, str(number)) for number in range(len(rest))]
        processes = [subprocess.Popen([*pytest, *shown])]
        for half, log in zip(rest, logs, strict=True):
            with log.open("w") as file:
                processes.append(
                    subprocess.Popen([*pytest, *half], stdout=file, stderr=subprocess.STDOUT)
                )
        codes = [process.wait() for process in processes]
        for half, log in zip(rest, logs, strict=True):
            print(f"\npytest {' '.join(half)}:\n{log.read_text()}", flush=True)
    return next(filter(None, codes), 0)


if __name__ == "__main__":
    sys.exit(run())
