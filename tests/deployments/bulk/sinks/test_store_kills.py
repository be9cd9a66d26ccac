"""Jobs into databases, killed; in the manner of test_kills."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.bulk.options import EmbedOptions
from deployments.bulk.sinks.choose import open_store
from deployments.model import ClipModel

ROWS = 30
KILLS = (3,)  # blocks begun, in all, when the driver is killed
PATIENCE_S = 120


def wait_until_begun(trace: Path, count: int, job: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not trace.exists() or len(trace.read_text().splitlines()) < count:
        if job.poll() is not None:
            pytest.fail(f"the job ended before it was to be killed: {job.communicate()[1]}")
        assert time.monotonic() < deadline_s, "the job makes no progress"
        time.sleep(0.01)


FURTHER = [pytest.param(name, marks=pytest.mark.stores) for name in ("lance", "qdrant")]


@pytest.mark.parametrize("name", ["postgres", *FURTHER])
def test_kills_lose_and_double_nothing_in_a_database(
    name: str,
    tmp_path: Path,
    make_options: Callable[..., EmbedOptions],
    inputs: Any,
    url_in: Callable[[str], str],
    reduced: ClipModel,
) -> None:
    """After kill -9 of the driver each id is there once, with its own vector."""
    rows = [{"id": f"k{i}", "text": f"text {i % 7}"} for i in range(ROWS)]
    source = inputs.jsonl(tmp_path / "in.jsonl", rows)
    trace, url = tmp_path / "trace", url_in(name)
    script = Path(__file__).parents[1] / "traced_job.py"
    options = make_options(text="text").model_dump_json()
    command = [sys.executable, str(script), str(source), url, str(trace), options]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[4])}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    for count in KILLS:
        job = start()
        wait_until_begun(trace, count, job)
        os.kill(job.pid, signal.SIGKILL)
        job.communicate()
    job = start()
    printed, errors = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 0, errors
    assert json.loads(printed.splitlines()[-1]) < ROWS  # some blocks were finished before
    store = open_store(url)
    assert store is not None
    found = sorted(store.rows(""), key=lambda row: int(row["row"]))
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    assert {row["error"] for row in found} == {None}
    if name != "qdrant":  # whose payload does not have them
        stored = [
            x if isinstance(x := row["text_embedding"], list) else x.to_list() for row in found
        ]
        expected = reduced.encode_text([row["text"] for row in rows])
        np.testing.assert_allclose(np.stack(stored), expected, atol=1e-5)
