"""What benchmarks.overload makes of outcomes, against numbers worked out by hand."""

import pytest

from benchmarks.harness.outcomes import Outcome
from benchmarks.overload import drain_ratios, in_time


def answered(sent_s: float, ended_s: float) -> Outcome:
    return Outcome("query", sent_s, sent_s, ended_s, 200)


def refused(sent_s: float, retry_after_s: float | None) -> Outcome:
    return Outcome("query", sent_s, sent_s, sent_s, 429, "OVERLOADED", retry_after_s=retry_after_s)


def test_an_answer_after_the_end_is_not_in_time() -> None:
    outcomes = [answered(5, 6), answered(6, 14.9), answered(6, 15.1), refused(6, 1)]
    assert in_time(outcomes, 10) == 2


def test_retry_after_is_compared_with_when_the_work_before_was_done() -> None:
    """What was sent later, or had ended before, does not count."""
    served = [answered(0, 9), answered(1, 12), answered(11, 40), answered(0, 5)]
    assert drain_ratios([*served, refused(10, 4)]) == pytest.approx([4 / 2])


def test_a_refusal_without_work_before_it_or_without_a_wait_has_no_ratio() -> None:
    assert drain_ratios([answered(0, 1), refused(2, 3), refused(0.5, None)]) == []
