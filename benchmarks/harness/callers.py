"""The load generator, run in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness import outcomes
from benchmarks.harness.outcomes import Outcome
from benchmarks.harness.processes import cpu_s


def command(url: str, mixes: Sequence[str], seconds: float, *options: str) -> list[str]:
    """Return the generator's command."""
    program = [sys.executable, "-m", "benchmarks.harness.load"]
    return [*program, "--url", url, "--mix", *mixes, "--seconds", f"{seconds:g}", *options]


def send(url: str, mix: str, seconds: float, *options: str) -> dict[str, Any]:
    """Run the generator to its end, and return its summary."""
    done = subprocess.run(
        command(url, [mix], seconds, *options), check=True, stdout=subprocess.PIPE, text=True
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def send_counting(
    url: str, mix: str, seconds: float, *options: str
) -> tuple[dict[str, Any], dict[str, float]]:
    """Run the generator; return its summary and the processor milliseconds per request, by kind."""
    before = cpu_s(os.getpid())
    result = send(url, mix, seconds, *options)
    after = cpu_s(os.getpid())
    requests = max(1, sum(result["outcomes"].values()))
    kinds = before.keys() & after.keys()
    return result, {kind: 1e3 * (after[kind] - before[kind]) / requests for kind in kinds}


def ask(url: str, mix: str, seconds: float, *options: str) -> list[Outcome]:
    """Run the generator to its end, and return what became of each request."""
    with asking(url, [mix], seconds, *options) as wait:
        return wait()


@contextmanager
def asking(
    url: str, mixes: Sequence[str], seconds: float, *options: str
) -> Iterator[Callable[[], list[Outcome]]]:
    """Start the generator and yield what waits for the outcomes.

    Raises:
        RuntimeError: the generator failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "outcomes"
        started = command(url, mixes, seconds, *options, "--outcomes", str(path))

        def wait() -> list[Outcome]:
            if process.wait():
                raise RuntimeError(f"the load generator ended with {process.returncode}")
            return outcomes.read(path)

        with subprocess.Popen(started, stdout=subprocess.DEVNULL) as process:
            try:
                yield wait
            finally:
                process.kill()  # where the block did not wait for it
