"""The order in which waiting work is taken."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.engine.queue import WorkQueue

BUDGET = 16384


def queue_of(*costs: int, max_cost: int = BUDGET, max_items: int = 512) -> WorkQueue[int]:
    queue: WorkQueue[int] = WorkQueue(max_cost, max_items)
    for number, cost in enumerate(costs):
        queue.push(number, cost)
    return queue


def taken(queue: WorkQueue[int]) -> list[int]:
    return [entry.payload for entry in queue.take()]


def test_a_batch_is_filled_up_to_its_budget():
    """Large items go oldest first, and the last room goes to a younger one that fits."""
    queue = queue_of(60, 60, 10, 10, 150, 30, max_cost=100)
    assert sorted(taken(queue)) == [0, 2, 3]


def test_items_per_batch_are_bounded_too():
    """Many tiny items stop at the item limit."""
    queue = queue_of(*[1] * 10, max_items=4)
    assert taken(queue) == [0, 1, 2, 3]
    assert queue.waiting_items == 6


def test_a_query_does_not_wait_for_a_queue_of_documents():
    """A 10-token text behind 50 texts of 8192 tokens is in the very next batch."""
    queue = queue_of(*[8192] * 50, 10)
    assert taken(queue) == [50]
    assert taken(queue) == [0, 1]


def test_a_query_does_not_wait_for_the_many_texts_of_one_call():
    """Texts as short as the query itself do not count as small when they come by the hundred."""
    queue: WorkQueue[int] = WorkQueue(512, 512)
    for number in range(100):
        queue.push(number, 12, call_cost=1200)
    query = queue.push(100, 12, call_cost=12)
    assert queue.take() == [query]
    other = queue.push(101, 12, call_cost=12)
    assert other not in queue.take()  # every other batch is the others'
    assert queue.take() == [other]


def test_a_query_has_its_turn_where_none_waited_before():
    """A batch of documents and bulk work alone does not use up the turn of the next query."""
    queue = queue_of(*[8192] * 4)
    queue.push(9, 8192, "bulk")
    assert taken(queue) == [0, 1]
    query = queue.push(10, 10)
    assert queue.take() == [query]


def test_a_crowd_of_queries_takes_a_quarter_of_every_other_batch():
    """The older document comes second, however many queries there are."""
    queue = queue_of(12000, *[100] * 1000)
    first, second, third = queue.take(), queue.take(), queue.take()
    assert 0 not in [entry.payload for entry in first]
    assert BUDGET / 4 - 100 < sum(entry.cost for entry in first) <= BUDGET / 4
    assert 0 in [entry.payload for entry in second]
    assert sum(entry.cost for entry in second) > BUDGET - 100
    assert sum(entry.cost for entry in third) > BUDGET - 100


def test_queries_among_themselves_share_full_batches():
    """Where nothing large waits there is nobody to go ahead of."""
    queue = queue_of(*[100] * 1000)
    assert sum(entry.cost for entry in queue.take()) > BUDGET - 100


def test_an_item_that_was_passed_over_is_first_next_time():
    """An item of the whole budget waits for one batch of younger ones at most."""
    queue = queue_of(100, BUDGET, 200, 300)
    assert taken(queue) == [0, 2, 3]
    for number in range(4, 8):
        queue.push(number, 100)
    assert taken(queue) == [1]


def test_an_item_over_the_budget_goes_alone():
    """It cannot block the queue."""
    queue = queue_of(500, 1, max_cost=100)
    assert [taken(queue), taken(queue), taken(queue)] == [[1], [0], []]


def test_a_dropped_item_is_never_taken():
    """Nor counted as waiting."""
    queue: WorkQueue[str] = WorkQueue(100, 10)
    kept, gone = queue.push("kept", 10), queue.push("gone", 20)
    queue.drop(gone)
    queue.drop(gone)
    assert (queue.waiting_items, queue.waiting_cost) == (1, 10)
    assert [entry.payload for entry in queue.take()] == ["kept"]
    queue.drop(kept)
    assert (queue.waiting_items, queue.waiting_cost) == (0, 0)


def test_bulk_fills_what_interactive_leaves():
    """With little interactive work, bulk has the rest of the batch."""
    queue: WorkQueue[str] = WorkQueue(100, 100)
    for _ in range(20):
        queue.push("bulk", 10, "bulk")
    queue.push("interactive", 10)
    batch = [entry.payload for entry in queue.take()]
    assert batch.count("interactive") == 1
    assert batch.count("bulk") == 9


@pytest.mark.parametrize("bulk_cost", [50, 1000, 8192])
def test_bulk_keeps_its_share_under_interactive_load(bulk_cost):
    """While interactive work never ends, bulk gets its fifth, whatever its items cost."""
    queue: WorkQueue[str] = WorkQueue(BUDGET, 512, bulk_share=0.2)
    done = {"interactive": 0, "bulk": 0}
    waiting = dict(done)
    for _ in range(200):
        while waiting["interactive"] < 3 * BUDGET:
            queue.push("interactive", 400)
            waiting["interactive"] += 400
        while waiting["bulk"] < 3 * BUDGET:
            queue.push("bulk", bulk_cost, "bulk")
            waiting["bulk"] += bulk_cost
        for entry in queue.take():
            done[entry.lane] += entry.cost
            waiting[entry.lane] -= entry.cost
    share = done["bulk"] / sum(done.values())
    assert 0.15 <= share <= 0.3


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**9), lanes=st.booleans())
def test_random_arrivals_and_drops_all_leave_once_within_the_budget(seed, lanes):
    """Each item is taken exactly once or dropped, no batch is over its budget, none starves."""
    chance = random.Random(seed)
    queue: WorkQueue[int] = WorkQueue(1000, 20)
    entries, taken_at, dropped = {}, {}, set()
    for turn in range(120):
        for _ in range(chance.randrange(4) if turn < 60 else 0):
            number = len(entries)
            lane = "bulk" if lanes and chance.random() < 0.5 else "interactive"
            cost = chance.choice([1, 5, 62, 63, 200, 700, 1000, 1500])
            entries[number] = queue.push(number, cost, lane)
        waiting = [n for n in entries if n not in taken_at and n not in dropped]
        if waiting and chance.random() < 0.3:
            dropped.add(chance.choice(waiting))
            for number in dropped:
                queue.drop(entries[number])
        batch = queue.take()
        assert len(batch) <= 20
        assert sum(e.cost for e in batch) <= 1000 or len(batch) == 1
        for entry in batch:
            assert entry.payload not in taken_at
            assert entry.payload not in dropped
            taken_at[entry.payload] = turn
    while batch := queue.take():
        taken_at.update({entry.payload: 120 for entry in batch})
    assert set(taken_at) | dropped == set(entries)
    assert queue.waiting_items == queue.waiting_cost == 0
