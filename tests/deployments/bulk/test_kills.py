import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from deployments.bulk.options import EmbedOptions

BLOCKS = 12
ROWS = BLOCKS * 4 - 2
DRIVER_KILLS = (2, 6)  # blocks begun, in all, when the driver is killed
TOWER_KILL = 10  # likewise of a tower
COST = 2  # blocks that a kill may cost
PATIENCE_S = 120


def wait_until_begun(trace: Path, count: int, job: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while len(begun(trace)) < count:
        if job.poll() is not None:
            pytest.fail(f"the job ended before it was to be killed: {job.communicate()[1]}")
        assert time.monotonic() < deadline_s, "the job makes no progress"
        time.sleep(0.01)


def begun(trace: Path) -> list[tuple[int, int]]:
    """Return the block and the process of each line."""
    lines = trace.read_text().splitlines() if trace.exists() else []
    return [tuple(json.loads(line)) for line in lines]


@pytest.fixture
def start(
    tmp_path: Path, make_options: Callable[..., EmbedOptions], inputs: Any
) -> Callable[[], subprocess.Popen[str]]:
    """Start the job, or resume it, in a process of its own."""
    rows = [{"id": i, "text": f"text {i % 7}"} for i in range(ROWS)]
    source = inputs.jsonl(tmp_path / "in.jsonl", rows)
    script = Path(__file__).with_name("traced_job.py")
    options = make_options(text="text").model_dump_json()
    command = [sys.executable, str(script), str(source), str(tmp_path / "out")]
    command += [str(tmp_path / "trace"), options]
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": str(root)}
    return lambda: subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_kills_lose_and_double_nothing(
    tmp_path: Path, start: Callable[[], subprocess.Popen[str]], inputs: Any
) -> None:
    """After kill -9 of the driver, twice, and of a tower, each row is there exactly once.

    No finished block is computed again, and each kill costs at most two blocks.
    """
    output, trace = tmp_path / "out", tmp_path / "trace"
    for count in DRIVER_KILLS:
        job = start()
        wait_until_begun(trace, count, job)
        os.kill(job.pid, signal.SIGKILL)
        job.communicate()
    finished = {path: path.stat().st_mtime_ns for path in output.glob("block-*.parquet")}
    job = start()
    wait_until_begun(trace, TOWER_KILL, job)
    os.kill(begun(trace)[-1][1], signal.SIGKILL)
    printed, errors = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 0, errors
    table = inputs.rows_of(output)
    assert table["id"].to_pylist() == list(range(ROWS))
    assert table["error"].null_count == ROWS
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    kept = sum(pq.read_metadata(path).num_rows for path in finished)
    assert int(printed.splitlines()[-1]) == ROWS - kept
    times = Counter(number for number, _ in begun(trace))
    assert sorted(times) == list(range(BLOCKS))
    kills = len(DRIVER_KILLS) + 1
    again = times.total() - BLOCKS
    assert kills <= again <= COST * kills  # each kill came while a tower was at work
