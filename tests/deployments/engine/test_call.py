"""A call knows when the last of its items has ended."""

from deployments.engine.call import Call


def test_a_call_is_done_with_its_last_item_and_has_results_in_its_own_order():
    """Items end in any order; a failure is a result."""
    call: Call[str] = Call(items=3, cost=30)
    error = ValueError("bad")
    for index, result in ((2, "c"), (0, "a")):
        call.settle(index, result)
        assert not call.done.is_set()
    call.settle(1, error)
    assert call.done.is_set()
    assert call.results == ["a", error, "c"]


def test_the_wait_ends_with_the_first_batch():
    """A call of many batches has waited until the first of them began."""
    call: Call[str] = Call(items=2, now_s=10.0, timeout_s=5.0)
    call.begin(10.25)
    call.begin(11.0)
    assert call.queue_ms == 250
    assert call.expires_s == 15
