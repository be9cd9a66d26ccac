"""What benchmarks.chaos makes of outcomes and of memory, against numbers worked out by hand."""

from dataclasses import replace

import pytest

from benchmarks.chaos import SETTLE_S, WINDOW_S, memory_mib, verdict
from benchmarks.harness.outcomes import Outcome

ANSWERED = [Outcome("query", x, x, x + 0.5, 200) for x in (10.0, 12.0, 13.0)]
BROKEN = Outcome("query", 19.9, 19.9, 20.1, 0, "ServerDisconnectedError")
REFUSED = Outcome("query", 11.0, 11.0, 11.1, 429, "OVERLOADED")


def test_what_a_killed_router_held_stands_apart_and_a_refusal_is_no_failure() -> None:
    found = verdict([*ANSWERED, BROKEN, REFUSED], router_kills_s=[20.0])
    assert (found["requests"], found["answered"], found["refused"]) == (5, 3, 1)
    assert found["failed"] == {}
    assert found["on a killed Router"] == {"0 ServerDisconnectedError": 1}
    assert (found["p50_s"], found["longest_s"], found["longest_gap_s"]) == (0.5, 0.5, 2.0)


@pytest.mark.parametrize(
    "failed",
    [
        replace(BROKEN, sent_s=20.2, ended_s=20.4),  # sent after the Router was killed
        replace(BROKEN, ended_s=25.0),  # ended by something else
        replace(BROKEN, sent_s=10.0, ended_s=11.0),  # ended before
        replace(ANSWERED[0], code="wrong row"),
        replace(ANSWERED[0], status=500, code="INTERNAL"),
    ],
)
def test_any_other_failure_is_one(failed: Outcome) -> None:
    found = verdict([*ANSWERED, failed], router_kills_s=[20.0])
    assert sum(found["failed"].values()) == 1
    assert found["on a killed Router"] == {}


def test_memory_of_the_first_minute_is_compared_with_that_of_the_last() -> None:
    """By kind the median process; a process with itself only if it is in both."""
    samples = [
        (SETTLE_S + at_s, {("Router", 1): mib, ("Router", pid): mib})
        for at_s, mib, pid in ((0.0, 100.0, 2), (WINDOW_S + 30.0, 500.0, 2), (200.0, 130.0, 3))
    ]
    assert memory_mib(samples) == {
        "Router": {"first": 100, "last": 130, "growth of those alive in both": [30]}
    }
