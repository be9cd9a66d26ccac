"""Budgets of outstanding work, and when to come back."""

import pickle

import pytest

from deployments.errors import OverloadedError, RequestTooLargeError
from deployments.routing.admission import WINDOW_S, Budget


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_work_within_the_budget_is_let_in_and_given_back():
    """Outstanding work falls with what is released; what was released can be taken again."""
    budget = Budget("tokens", 100, Clock())
    budget.admit(60)
    budget.release(25)
    assert budget.outstanding == 35
    budget.admit(65)
    budget.release(100)
    assert budget.outstanding == 0


def test_over_the_budget_is_refused_with_the_time_in_which_it_drains():
    """At 10 units a second, 70 outstanding units take 7 seconds; the first chunk's wait is none."""
    clock = Clock()
    budget = Budget("images", 100, clock)
    budget.admit(100)
    for clock.now in (5.0, 6.0, 7.0):
        budget.release(10)
    with pytest.raises(OverloadedError, match="70 images are outstanding") as refused:
        budget.admit(31)
    assert refused.value.retry_after_s == pytest.approx(7.0)
    assert budget.outstanding == 70  # what is refused takes nothing
    budget.admit(30)
    assert budget.outstanding == 100


def test_idle_time_does_not_make_the_drain_look_slow():
    """After a pause the rate is that of the last work, not of the pause."""
    clock = Clock()
    budget = Budget("tokens", 100, clock)
    budget.admit(50)
    budget.release(10)
    clock.now += 1.0
    budget.release(40)
    clock.now += 1000.0
    budget.admit(100)
    assert budget.drain_s() == pytest.approx(100 / 40)


def test_before_anything_was_finished_a_second_is_asked_for():
    """Without a rate there is no better guess."""
    budget = Budget("tokens", 100, Clock())
    budget.admit(100)
    with pytest.raises(OverloadedError) as refused:
        budget.admit(1)
    assert refused.value.retry_after_s == 1.0


def test_a_request_larger_than_the_whole_budget_is_told_to_split():
    """It could never be let in, so waiting would not help."""
    budget = Budget("tokens", 100, Clock())
    with pytest.raises(RequestTooLargeError, match="101 tokens"):
        budget.admit(101)


def test_refused_work_still_counts_as_arrived():
    """Autoscaling has to see what was turned away."""
    budget = Budget("tokens", 100, Clock())
    budget.admit(100)
    with pytest.raises(OverloadedError):
        budget.admit(50)
    assert budget.arrived_total == 150


def test_the_refusal_survives_the_way_between_processes():
    """Message and time are there after pickling."""
    error = pickle.loads(pickle.dumps(OverloadedError("busy", 2.5)))
    assert (str(error), error.retry_after_s) == ("busy", 2.5)


def test_a_router_that_is_never_idle_and_never_refuses_keeps_no_more_than_its_window():
    """Hours of chunks leave what the last seconds left; the rate is still that of the window."""
    clock = Clock()
    budget = Budget("tokens", 1000, clock)
    budget.admit(10)
    kept = []
    for number in range(20_000):
        clock.now += 0.01
        budget.admit(10)
        budget.release(10)
        if number % 1000 == 999:
            kept.append(len(budget._rate._finished))
    assert max(kept) <= WINDOW_S / 0.01 + 2
    assert budget.drain_s() == pytest.approx(0.01)


def test_what_can_never_be_admitted_is_no_work_that_arrived():
    """A client that repeats a refused request does not make the towers scale."""
    budget = Budget("tokens", 100, Clock())
    for _ in range(3):
        with pytest.raises(RequestTooLargeError):
            budget.admit(101)
    assert budget.arrived_total == 0
    budget.admit(100)
    with pytest.raises(OverloadedError):  # this one may come back: it is demand
        budget.admit(1)
    assert budget.arrived_total == 101
