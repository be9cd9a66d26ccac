"""The log of a batch after the death of who wrote it."""

import json
import os
import random
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from serve_app.batches import log as log_module
from serve_app.batches.lines import Line
from serve_app.batches.log import Log, Numbers, expired

BODY = b'{"data":[1]}'
NUMBERS = range(1, 201)


def lines(*numbers: int) -> list[Line]:
    return [Line(number, f"r{number}", b"{}") for number in numbers]


def written(path, *numbers: int) -> Log:
    log = Log(path)
    for line in lines(*numbers):
        log.add(line, 400 if line.number % 2 else 200, f"q{line.number}", BODY)
    return log


def test_answers_are_lines_as_openai_has_them(tmp_path):
    """With the number and the status before them."""
    log = written(tmp_path / "log", 1, 2)
    (_, _, _), (number, status, answer) = log.answers()
    assert (number, status) == (2, 200)
    assert json.loads(answer) == {
        "id": "batch_req_q2",
        "custom_id": "r2",
        "response": {"status_code": 200, "request_id": "q2", "body": {"data": [1]}},
        "error": None,
    }
    assert (len(log.done), log.failed) == (2, 1)


@pytest.mark.parametrize("cut", range(1, 125, 7))
def test_a_line_that_was_cut_off_is_done_again_and_spoils_no_other(tmp_path, cut):
    """Wherever the process died."""
    path = tmp_path / "log"
    written(path, 1, 2, 3).close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    again = Log(path)
    assert [number in again.done for number in range(1, 4)] == [True, True, False]
    again.add(lines(3)[0], 200, "again", BODY)
    assert sorted(number for number, _, _ in again.answers()) == [1, 2, 3]
    assert all(json.loads(answer)["response"] for _, _, answer in again.answers())


def test_an_answer_that_two_have_written_counts_once(tmp_path):
    """The first is kept."""
    path = tmp_path / "log"
    written(path, 1, 2).close()
    again = written(path, 2)
    assert [(number, json.loads(text)["custom_id"]) for number, _, text in again.answers()] == [
        (1, "r1"),
        (2, "r2"),
    ]


def test_answers_of_several_threads_are_whole_though_writes_are_cut_short(tmp_path, monkeypatch):
    """The rest of a line follows its beginning, and every failure counts."""
    write = os.write
    monkeypatch.setattr(log_module.os, "write", lambda to, data: write(to, data[:7]))
    log = Log(tmp_path / "log")
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda x: log.add(x, 400, f"q{x.number}", BODY), lines(*NUMBERS)))
    assert sorted(number for number, _, _ in log.answers()) == list(NUMBERS)
    assert log.failed == 200


def test_numbers_are_a_set_that_stays_small_where_they_come_nearly_in_order():
    """Twice or out of turn too; a million lines that are done cost nothing."""
    order = random.Random(3)
    numbers, plain = Numbers(), set()
    for number in [order.randint(max(1, x - 40), x) for x in range(1, 3000)]:
        numbers.add(number)
        plain.add(number)
        assert len(numbers) == len(plain)
    assert [x in numbers for x in range(1, 3100)] == [x in plain for x in range(1, 3100)]
    numbers = Numbers()
    tracemalloc.start()
    for start in range(0, 100_000, 8):
        for offset in order.sample(range(1, 9), 8):
            numbers.add(start + offset)
    own = [tracemalloc.Filter(True, log_module.__file__)]  # other threads take memory too
    held = tracemalloc.take_snapshot().filter_traces(own).statistics("filename")
    tracemalloc.stop()
    assert len(numbers) == 100_000
    assert sum(x.size for x in held) < 10_000  # a set keeps the room it once had


def test_what_was_not_come_to_says_so():
    """As OpenAI has it."""
    said = json.loads(expired(lines(7)[0]))
    assert said["response"] is None
    assert (said["custom_id"], said["error"]["code"]) == ("r7", "batch_expired")
