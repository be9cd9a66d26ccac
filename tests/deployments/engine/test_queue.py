"""The order in which waiting work is taken."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.engine.call import Call, QueuedItem
from deployments.engine.queue import WorkQueue
from deployments.messages import Lane

BUDGET = 16384


def push(queue, item, cost: int, lane: Lane = "interactive", call_cost: int = 0) -> QueuedItem:
    """Queue one item, of a call of its own unless the call costs more."""
    queued = QueuedItem(item, cost, Call(1, max(cost, call_cost), lane))
    queue.push(queued)
    return queued


def queue_of(*costs: int, max_cost: int = BUDGET, max_items: int = 512) -> WorkQueue[int, int]:
    queue: WorkQueue[int, int] = WorkQueue(max_cost, max_items)
    for number, cost in enumerate(costs):
        push(queue, number, cost)
    return queue


def taken(queue: WorkQueue[int, int]) -> list[int]:
    return [queued.item for queued in queue.take()]


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
    queue: WorkQueue[int, int] = WorkQueue(512, 512)
    for number in range(100):
        push(queue, number, 12, call_cost=1200)
    query = push(queue, 100, 12, call_cost=12)
    assert queue.take() == [query]
    other = push(queue, 101, 12, call_cost=12)
    assert other not in queue.take()  # every other batch is the others'
    assert queue.take() == [other]


def test_a_query_has_its_turn_where_none_waited_before():
    """A batch of documents and bulk work alone does not use up the turn of the next query."""
    queue = queue_of(*[8192] * 4)
    push(queue, 9, 8192, "bulk")
    assert taken(queue) == [0, 1]
    query = push(queue, 10, 10)
    assert queue.take() == [query]


def test_some_queries_do_not_wait_for_a_document_in_their_batch():
    """A quarter of a batch or less goes by itself, however little that is."""
    queue = queue_of(12000, *[100] * 40)
    first, second = queue.take(), queue.take()
    assert [entry.item for entry in first] == list(range(1, 41))
    assert [entry.item for entry in second] == [0]


def test_calls_on_both_sides_of_the_bound_share_full_batches():
    """Requests of about a sixteenth of a batch, all alike, do not have every second one small."""
    queue: WorkQueue[int, int] = WorkQueue(BUDGET, BUDGET)
    for number in range(100):
        push(queue, number, 500, call_cost=BUDGET // 16 + (-1) ** number)
    for _ in range(3):
        assert sum(entry.cost for entry in queue.take()) > BUDGET - 500


def test_a_crowd_of_queries_takes_every_other_batch():
    """The older document comes second, however many queries there are."""
    queue = queue_of(12000, *[100] * 1000)
    first, second, third = queue.take(), queue.take(), queue.take()
    assert 0 not in [entry.item for entry in first]
    assert 0 in [entry.item for entry in second]
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
        push(queue, number, 100)
    assert taken(queue) == [1]


def test_an_item_over_the_budget_goes_alone():
    """It cannot block the queue."""
    queue = queue_of(500, 1, max_cost=100)
    assert [taken(queue), taken(queue), taken(queue)] == [[1], [0], []]


def test_a_dropped_item_is_never_taken():
    """Nor counted as waiting."""
    queue: WorkQueue[str, int] = WorkQueue(100, 10)
    kept, gone = push(queue, "kept", 10), push(queue, "gone", 20)
    queue.drop(gone)
    queue.drop(gone)
    assert (queue.waiting_items, queue.waiting_cost) == (1, 10)
    assert [entry.item for entry in queue.take()] == ["kept"]
    queue.drop(kept)
    assert (queue.waiting_items, queue.waiting_cost) == (0, 0)


def test_bulk_fills_what_interactive_leaves():
    """With little interactive work, bulk has the rest of the batch."""
    queue: WorkQueue[str, int] = WorkQueue(100, 100)
    for _ in range(20):
        push(queue, "bulk", 10, "bulk")
    push(queue, "interactive", 10)
    batch = [entry.item for entry in queue.take()]
    assert batch.count("interactive") == 1
    assert batch.count("bulk") == 9


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**9), lanes=st.booleans())
def test_random_arrivals_and_drops_all_leave_once_within_the_budget(seed, lanes):
    """Each item is taken exactly once or dropped, no batch is over its budget, none starves."""
    chance = random.Random(seed)
    queue: WorkQueue[int, int] = WorkQueue(1000, 20)
    entries, taken_at, dropped = {}, {}, set()
    for turn in range(120):
        for _ in range(chance.randrange(4) if turn < 60 else 0):
            number = len(entries)
            lane = "bulk" if lanes and chance.random() < 0.5 else "interactive"
            cost = chance.choice([1, 5, 62, 63, 200, 700, 1000, 1500])
            entries[number] = push(queue, number, cost, lane)
        waiting = [n for n in entries if n not in taken_at and n not in dropped]
        if waiting and chance.random() < 0.3:
            dropped.add(chance.choice(waiting))
            for number in dropped:
                queue.drop(entries[number])
        batch = queue.take()
        assert len(batch) <= 20
        assert sum(e.cost for e in batch) <= 1000 or len(batch) == 1
        for entry in batch:
            assert entry.item not in taken_at
            assert entry.item not in dropped
            taken_at[entry.item] = turn
    while batch := queue.take():
        taken_at.update({entry.item: 120 for entry in batch})
    assert set(taken_at) | dropped == set(entries)
    assert queue.waiting_items == queue.waiting_cost == 0
