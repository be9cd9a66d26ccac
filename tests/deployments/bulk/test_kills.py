import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from deployments.bulk.columns import DIGEST, vector_columns
from deployments.bulk.job import prepare
from deployments.bulk.options import EmbedOptions
from deployments.bulk.output import OutputFolder
from deployments.bulk.takeover import digest_column
from deployments.model import ClipModel

BLOCKS = 12
ROWS = BLOCKS * 4 - 2
DRIVER_KILL = 4  # blocks begun, in all, when the driver is killed
TOWER_KILL = 8  # likewise of a tower
KILLS = 2  # of these
COST = 2  # blocks that a kill may cost
PATIENCE_S = 120
RANDOM_KILLS = 2
LONGEST_WAIT_S = 0.6  # from a block's beginning to the kill: it is computed or written by then


def wait_until_begun(trace: Path, count: int, job: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while len(begun(trace)) < count:
        if job.poll() is not None:
            pytest.fail(f"the job ended before it was to be killed: {job.communicate()[1]}")
        assert time.monotonic() < deadline_s, "the job makes no progress"
        time.sleep(0.01)


def begun(trace: Path) -> list[tuple[int, int, int]]:
    """Return the block, the process and the texts of each line."""
    lines = trace.read_text().splitlines() if trace.exists() else []
    return [tuple(json.loads(line)) for line in lines]


@pytest.fixture
def start(
    tmp_path: Path, make_options: Callable[..., EmbedOptions], inputs: Any
) -> Callable[[], subprocess.Popen[str]]:
    """Start the job, or resume it, in a process of its own."""
    rows = [{"id": i, "text": f"text {i % 7}"} for i in range(ROWS)]
    source = inputs.jsonl(tmp_path / "in.jsonl", rows)
    options = make_options(text="text").model_dump_json()
    return lambda: start_job(source, tmp_path / "out", tmp_path / "trace", options)


def start_job(*arguments: Path | str) -> subprocess.Popen[str]:
    script = Path(__file__).with_name("traced_job.py")
    command = [sys.executable, str(script), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_kills_lose_and_double_nothing(
    tmp_path: Path, start: Callable[[], subprocess.Popen[str]], inputs: Any
) -> None:
    """After kill -9 of the driver and of a tower each row is there exactly once.

    No finished block is computed again, and each kill costs at most two blocks.
    """
    output, trace = tmp_path / "out", tmp_path / "trace"
    job = start()
    wait_until_begun(trace, DRIVER_KILL, job)
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
    times = Counter(number for number, *_ in begun(trace))
    assert sorted(times) == list(range(BLOCKS))
    again = times.total() - BLOCKS
    assert KILLS <= again <= COST * KILLS  # each kill came while a tower was at work


@pytest.fixture(scope="module")
def second_folder(reduced_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint like the reduced one, with other weights."""
    folder = tmp_path_factory.mktemp("second") / "checkpoint"
    shutil.copytree(reduced_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    changed = {name: np.asarray(x * 1.05 + 0.002, x.dtype) for name, x in tensors.items()}
    save_file(changed, folder / "model.safetensors")
    return folder


def write_old(source: Path, output: Path, by_block: list[EmbedOptions]) -> None:
    """Write an output whose blocks are of one model or another, as those models compute them."""
    folder = OutputFolder(str(output))
    models = {id(x): ClipModel.load(x.app.model.source) for x in by_block}
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    for number, options in enumerate(by_block):
        identity = prepare(str(source), str(output), options, key="id", block_rows=4).identity
        if number == 0:
            folder.begin(identity, resume=False)
        table = pa.Table.from_pylist(rows[number * 4 : number * 4 + 4])
        texts = {i: x for i, x in enumerate(table["text"].to_pylist()) if x is not None}
        vectors = models[id(options)].encode_text(list(texts.values()))
        found = dict(zip(texts, vectors, strict=True))
        errors = [None if i in texts else "the row is empty" for i in range(table.num_rows)]
        table = table.append_column(
            "text_embedding", vector_columns(found, table.num_rows, vectors.shape[1], "float32")[0]
        ).append_column("error", pa.array(errors, pa.string()))
        digests = digest_column(table, options)
        folder.write(number, table.append_column(DIGEST, digests), errors.count(None), identity)


@pytest.mark.parametrize("seed", [1])
def test_kills_at_random_points_leave_a_new_model_beside_the_old(
    seed: int,
    tmp_path: Path,
    make_options: Callable[..., EmbedOptions],
    bulk_app: Any,
    second_folder: Path,
    inputs: Any,
) -> None:
    """Each row is there once, of the new model; what was there of it is copied; the report is true.

    Of the old output the first four blocks are of the new model, and its first two rows are not in
    the input any more.
    """
    rows = [{"id": f"k{i}", "text": None if i == 9 else f"text {i}"} for i in range(ROWS)]
    gone = [{"id": f"gone{i}", "text": f"gone {i}"} for i in range(2)]
    source = inputs.jsonl(tmp_path / "in.jsonl", rows)
    of_model = bulk_app.model.model_copy(update={"source": str(second_folder)})
    app = bulk_app.model_copy(update={"model": of_model})
    before = make_options(text="text")
    after = before.model_copy(update={"app": app})
    old, new, trace = (tmp_path / name for name in ("old", "new", "trace"))
    all_rows = inputs.jsonl(tmp_path / "all.jsonl", gone + rows)
    write_old(all_rows, old, [after] * 4 + [before] * (BLOCKS - 4))

    chance = random.Random(seed)
    arguments = source, new, trace, after.model_dump_json(), old
    for count in sorted(chance.sample(range(1, BLOCKS - 1), RANDOM_KILLS)):
        job = start_job(*arguments)
        wait_until_begun(trace, count, job)
        time.sleep(chance.uniform(0, LONGEST_WAIT_S))
        os.kill(job.pid, signal.SIGKILL)
        job.communicate()
        assert not (new / "_manifest.json").exists()
    job = start_job(*arguments)
    printed, errors = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 0, errors

    table = inputs.rows_of(new)
    assert table["id"].to_pylist() == [row["id"] for row in rows]
    assert [i for i, x in enumerate(table["error"].to_pylist()) if x] == [9]
    texts = [row["text"] for row in rows if row["text"]]
    vectors = np.array(table["text_embedding"].drop_null().to_pylist())
    expected = ClipModel.load(second_folder).encode_text(texts)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    computed = {number: texts for number, _, texts in begun(trace)}
    taken = 4 * 4 - len(gone) - 1  # rows of the input in the new model's blocks, less the empty one
    assert sum(computed.values()) == len(texts) - taken

    report = json.loads(printed.splitlines()[-1])
    was = ClipModel.load(before.app.model.source).encode_text(texts)
    was[:taken] = vectors[:taken]
    check_report(report, was, vectors)
    assert json.loads((new / "_manifest.json").read_text())["report"] == report


def check_report(report: dict[str, Any], was: np.ndarray, now: np.ndarray) -> None:
    assert (report["old_rows"], report["new_rows"], report["missing_rows"]) == (ROWS + 2, ROWS, 2)
    change = report["changes"]["text_embedding"]
    assert (change["rows"], change["lost"]) == (len(was), 2)
    assert change["cosine"] == pytest.approx((was * now).sum(axis=1).mean(), abs=1e-5)
    shared = 0
    for place in range(len(was)):
        tens = []
        for vectors in (was, now):
            scores = vectors @ vectors[place]
            tens.append({*[i for i in np.argsort(-scores).tolist() if i != place][:10]})
        shared += len(tens[0] & tens[1])
    assert change["overlap"] == pytest.approx(shared / (10 * len(was)), abs=0.01)
    assert 0 < change["overlap"] < 1
