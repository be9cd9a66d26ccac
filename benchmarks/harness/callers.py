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

SHARES = (0.5, 0.8, 1.1)  # of the closed loop's rate, offered in the open loop


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


def measure(url: str, mix: str, seconds: float, callers: int) -> dict[str, Any]:
    """Ask one server for one mix: one caller, many callers, then growing rates."""
    send(url, mix, min(2, seconds), "--callers", str(callers))
    one = send(url, mix, seconds)
    many, cpu_ms = send_counting(url, mix, seconds, "--callers", str(callers))
    rates = {}
    for share in SHARES:
        rate = max(0.5, share * many["requests_per_s"])
        rates[share] = send(url, mix, seconds, "--rate", f"{rate:.2f}")
    return {
        "one caller": one,
        "many callers": many,
        "cpu_ms_per_request": {
            kind: round(spent, 2) for kind, spent in sorted(cpu_ms.items()) if spent
        },
        "open loop": rates,
    }


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
