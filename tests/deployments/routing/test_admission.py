"""Budgets of outstanding work, and when to come back."""

import pickle
from contextlib import suppress

import pytest

from deployments.errors import OverloadedError, RequestTooLargeError
from deployments.routing.admission import WINDOW_S, Budget


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_work_within_the_budget_is_let_in_and_given_back():
    """Outstanding work falls with what is released; what was released can be taken again."""
    budget = Budget("tokens", 100, clock=Clock())
    budget.admit(60, "interactive")
    budget.release(25, "interactive")
    assert budget.outstanding == 35
    budget.admit(65, "interactive")
    budget.release(100, "interactive")
    assert budget.outstanding == 0


def test_over_the_budget_is_refused_with_the_time_in_which_it_drains():
    """At 10 units a second, 70 outstanding units take 7 seconds; the first chunk's wait is none."""
    clock = Clock()
    budget = Budget("images", 100, clock=clock)
    budget.admit(100, "interactive")
    for clock.now in (5.0, 6.0, 7.0):
        budget.release(10, "interactive")
    with pytest.raises(OverloadedError, match="70 images are outstanding") as refused:
        budget.admit(31, "interactive")
    assert refused.value.retry_after_s == pytest.approx(7.0)
    assert budget.outstanding == 70  # what is refused takes nothing
    budget.admit(30, "interactive")
    assert budget.outstanding == 100


def test_idle_time_does_not_make_the_drain_look_slow():
    """After a pause the rate is that of the last work, not of the pause."""
    clock = Clock()
    budget = Budget("tokens", 100, clock=clock)
    budget.admit(50, "interactive")
    budget.release(10, "interactive")
    clock.now += 1.0
    budget.release(40, "interactive")
    clock.now += 1000.0
    budget.admit(100, "interactive")
    assert budget.drain_s(100) == pytest.approx(100 / 40)


def test_before_anything_was_finished_a_second_is_asked_for():
    """Without a rate there is no better guess."""
    budget = Budget("tokens", 100, clock=Clock())
    budget.admit(100, "interactive")
    with pytest.raises(OverloadedError) as refused:
        budget.admit(1, "interactive")
    assert refused.value.retry_after_s == 1.0


def test_a_request_larger_than_the_whole_budget_is_told_to_split():
    """It could never be let in, so waiting would not help."""
    budget = Budget("tokens", 100, clock=Clock())
    with pytest.raises(RequestTooLargeError, match="101 tokens"):
        budget.admit(101, "interactive")


def test_refused_work_still_counts_as_arrived():
    """Autoscaling has to see what was turned away."""
    budget = Budget("tokens", 100, clock=Clock())
    budget.admit(100, "interactive")
    with pytest.raises(OverloadedError):
        budget.admit(50, "interactive")
    assert budget.arrived_total == 50


def test_the_refusal_survives_the_way_between_processes():
    """Message and time are there after pickling."""
    error = pickle.loads(pickle.dumps(OverloadedError("busy", 2.5)))
    assert (str(error), error.retry_after_s) == ("busy", 2.5)


def test_a_router_that_is_never_idle_and_never_refuses_keeps_no_more_than_its_window():
    """Hours of chunks leave what the last seconds left; the rate is still that of the window."""
    clock = Clock()
    budget = Budget("tokens", 1000, clock=clock)
    budget.admit(10, "interactive")
    kept = []
    for number in range(20_000):
        clock.now += 0.01
        budget.admit(10, "interactive")
        budget.release(10, "interactive")
        if number % 1000 == 999:
            kept.append(len(budget._rate._finished))
    assert max(kept) <= WINDOW_S / 0.01 + 2
    assert budget.drain_s(10) == pytest.approx(0.01)


def test_what_can_never_be_admitted_is_no_work_that_arrived():
    """A client that repeats a refused request does not make the towers scale."""
    budget = Budget("tokens", 100, clock=Clock())
    for _ in range(3):
        with pytest.raises(RequestTooLargeError):
            budget.admit(101, "interactive")
    assert budget.arrived_total == 0
    budget.admit(100, "interactive")
    with pytest.raises(OverloadedError):  # this one may come back: it is demand
        budget.admit(1, "interactive")
    assert budget.arrived_total == 1


def test_bulk_work_leaves_interactive_work_its_own():
    """The lane bulk holds its share at most; what it leaves empty is for interactive work too."""
    budget = Budget("tokens", 100, bulk_share=0.75, clock=Clock())
    budget.admit(75, "bulk")
    with pytest.raises(OverloadedError, match="75 tokens are outstanding and the limit is 75"):
        budget.admit(1, "bulk")
    budget.admit(25, "interactive")
    with pytest.raises(OverloadedError, match="100 tokens are outstanding and the limit is 100"):
        budget.admit(1, "interactive")
    budget.release(75, "bulk")
    budget.admit(75, "interactive")
    with pytest.raises(OverloadedError, match="100 tokens"):
        budget.admit(1, "bulk")
    assert budget.outstanding == 100


def test_bulk_work_over_the_share_is_told_to_split_and_when_its_own_work_is_done():
    """What the share can never hold is no demand; the wait is that for the lane's work."""
    clock = Clock()
    budget = Budget("tokens", 100, bulk_share=0.5, clock=clock)
    with pytest.raises(RequestTooLargeError, match=r"51 tokens; the server takes 50 .* lane bulk"):
        budget.admit(51, "bulk")
    assert budget.arrived_total == 0
    budget.admit(50, "bulk")
    budget.admit(50, "interactive")
    for clock.now in (1.0, 2.0):
        budget.release(10, "interactive")
    with pytest.raises(OverloadedError) as refused:
        budget.admit(10, "bulk")
    assert refused.value.retry_after_s == pytest.approx(5.0)


def test_what_is_given_back_unused_is_neither_pace_nor_work_that_never_came():
    """A request holds what it expects and gives back the rest: rate and arrivals stay."""
    clock = Clock()
    budget = Budget("images", 100, clock=clock)
    with budget.hold("interactive") as hold:
        hold.arrive(40)
        for clock.now in (1.0, 2.0):
            hold.done(10)
        clock.now = 3.0
        hold.resize(5)
        assert (budget.outstanding, budget.arrived_total) == (5, 40)
        assert budget.drain_s(10) == pytest.approx(1.0)  # 10 a second, as before
        hold.resize(9)
        assert (budget.outstanding, budget.arrived_total) == (9, 40)
    assert budget.outstanding == 0


def test_work_has_arrived_once_it_is_there_or_is_refused():
    """Ten expected, of which seven come, are seven; those for which there is no room are all."""
    budget = Budget("images", 20, clock=Clock())
    with budget.hold("interactive") as hold:
        hold.resize(10)
        assert (budget.outstanding, budget.arrived_total) == (10, 0)
        hold.arrive(7)
        assert (budget.outstanding, budget.arrived_total) == (7, 7)
        hold.done(7)
        hold.arrive(2)  # which are computed once more
        assert (budget.outstanding, budget.arrived_total) == (2, 9)
    with budget.hold("interactive") as hold:
        hold.resize(10)
    assert (budget.outstanding, budget.arrived_total) == (0, 9)
    budget.admit(15, "interactive")
    with budget.hold("interactive") as hold, pytest.raises(OverloadedError):
        hold.resize(10)
    assert budget.arrived_total == 9 + 10


def test_work_that_was_given_up_is_free_and_says_nothing_of_the_pace():
    """A request that fails leaves no units behind, and none can be taken for it afterwards."""
    clock = Clock()
    budget = Budget("bytes", 100, clock=clock)
    with suppress(KeyError), budget.hold("bulk") as hold:
        hold.resize(30)
        raise KeyError
    assert (budget.outstanding, hold.units) == (0, 0)
    with pytest.raises(ValueError, match="ended"):  # from a thread that still reads
        hold.resize(1)
    assert budget.drain_s(10) == 1.0  # nothing was ever finished


def test_a_hold_counts_as_one_request_and_can_move_to_another_lane():
    """What it takes later is added to what it has; a lane without room refuses it."""
    budget = Budget("bytes", 100, bulk_share=0.5, clock=Clock())
    with budget.hold("interactive") as hold:
        hold.resize(60)
        with pytest.raises(RequestTooLargeError, match="101 bytes"):
            hold.resize(101)
        assert hold.units == 60
        with pytest.raises(RequestTooLargeError, match="60 bytes"):
            hold.move("bulk")
    with budget.hold("interactive") as hold, budget.hold("bulk") as other:
        other.resize(20)
        hold.resize(30)
        hold.move("bulk")
        with pytest.raises(OverloadedError):
            other.resize(21)
    assert budget.outstanding == 0
