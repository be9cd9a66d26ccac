"""Callers in a process of their own, and what they saw."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.chaos_load import Outcome


@contextmanager
def callers(
    url: str, folder: Path, per_s: float, seconds: float, mix: str
) -> Iterator[Callable[[], list[Outcome]]]:
    """Ask from another process, beginning with the block; yield what waits for the outcomes."""
    log = folder / "outcomes.jsonl"
    command = [sys.executable, "-m", "benchmarks.chaos_load", "--url", url, "--mix", mix]
    command += ["--rate", str(per_s), "--seconds", str(seconds), "--output", str(log)]
    with subprocess.Popen(command) as process:

        def outcomes() -> list[Outcome]:
            process.wait()
            return [Outcome(**json.loads(line)) for line in log.read_text().splitlines()]

        yield outcomes


def seen(outcomes: Sequence[Outcome], fault_s: float) -> dict[str, Any]:
    """Return what callers saw from a moment on; seconds count from it."""
    after = [x for x in outcomes if x.ended_s >= fault_s]
    failed = [x for x in after if x.status != 200 or x.code]
    ends = [fault_s, *sorted(x.ended_s for x in after if x not in failed)]
    longest_s, begin_s = max((late - early, early) for early, late in pairwise(ends))
    return {
        "asked": len(after),
        "failed": tally(failed),
        "last_failure_sent_s": round(max((x.sent_s for x in failed), default=fault_s) - fault_s, 1),
        "longest_gap_s": round(longest_s, 2),
        "gap_begins_s": round(begin_s - fault_s, 2),
        "slowest_answer_s": round(max(x.ended_s - x.sent_s for x in after if x not in failed), 2),
    }


def tally(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Count outcomes by status and code."""
    return dict(Counter(f"{x.status} {x.code}" for x in outcomes))


def seconds_until(condition: Callable[[], bool], limit_s: float) -> float | None:
    """Return after how many seconds something holds; None where it does not in time."""
    begin_s = time.monotonic()
    while (passed_s := time.monotonic() - begin_s) < limit_s:
        if condition():
            return round(passed_s, 1)
        time.sleep(0.1)
    return None
