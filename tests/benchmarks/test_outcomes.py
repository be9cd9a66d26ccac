"""What is made of the load generator's outcomes, against numbers worked out by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.harness.outcomes import Outcome, quantile, read, seen_after, summary, tally, write

GOOD = Outcome("query", 10.0, 10.1, 10.5, 200, "", 2, 20, 300, "queue;dur=1.5, towers;dur=4", None)
REFUSED = Outcome("query", 11.0, 11.0, 11.2, 429, "OVERLOADED", 2, 20, 40, "", 1.5)
LOST = Outcome("query", 12.0, 12.0, 12.3, 0, "ServerDisconnectedError", 2, 20)


def test_outcomes_are_the_same_after_a_file(tmp_path: Path) -> None:
    write([GOOD, REFUSED, LOST], tmp_path / "outcomes")
    assert read(tmp_path / "outcomes") == [GOOD, REFUSED, LOST]


def test_a_summary_counts_all_and_rates_only_what_was_answered() -> None:
    """The latency counts from when a request was due, not from when it was sent."""
    slow = replace(GOOD, due_s=20.0, sent_s=20.0, ended_s=21.5, stages="towers;dur=6;desc=x")
    found = summary([GOOD, slow, REFUSED, LOST], seconds=4.0, cpu_s=1.0)
    assert found["outcomes"] == {200: 2, 429: 1, 0: 1}
    assert (found["requests_per_s"], found["items_per_s"], found["tokens_per_s"]) == (0.5, 1, 10)
    assert (found["mean_ms"], found["p50_ms"], found["p99_ms"]) == (1000, 1500, 1500)
    assert found["stages_ms"] == {"queue": 0.75, "towers": 5}
    assert found["sent_late_p99_ms"] == 100
    assert found["bytes_per_item"] == 150
    assert found["generator_core_share"] == 0.25


def test_a_wrong_row_is_not_an_answer() -> None:
    wrong = replace(GOOD, code="wrong row")
    assert summary([wrong], 1.0, 0.0)["requests_per_s"] == 0
    assert tally([wrong, GOOD, REFUSED]) == {"200 wrong row": 1, "200": 1, "429 OVERLOADED": 1}


def test_of_nothing_there_are_no_latencies() -> None:
    assert quantile(0.5, []) is None
    assert summary([LOST], 1.0, 0.0)["p99_ms"] is None


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 3), (0.99, 4)])
def test_a_quantile_is_one_of_the_values(share: float, value: float) -> None:
    assert quantile(share, [4, 1, 3, 2]) == value


def answers(*ends_s: float) -> list[Outcome]:
    return [replace(GOOD, due_s=x - 0.1, sent_s=x - 0.1, ended_s=x) for x in ends_s]


def test_after_a_fault_gap_failures_and_slowest_answer_are_seen() -> None:
    """What ended before it does not count."""
    lost = replace(LOST, due_s=101.0, sent_s=101.0, ended_s=102.0)
    slow = replace(GOOD, due_s=103.5, sent_s=103.5, ended_s=105.5)
    found = seen_after([*answers(90, 99, 100.5, 104), lost, slow], fault_s=100.0)
    assert found == {
        "asked": 4,
        "failed": {"0 ServerDisconnectedError": 1},
        "last_failure_sent_s": 1.0,
        "longest_gap_s": 3.5,
        "gap_begins_s": 0.5,
        "slowest_answer_s": 2.0,
    }


def test_where_nothing_is_answered_any_more_the_gap_lasts_to_the_end() -> None:
    lost = replace(LOST, ended_s=130.0)
    assert seen_after([*answers(99), lost], fault_s=100.0)["longest_gap_s"] == 30
