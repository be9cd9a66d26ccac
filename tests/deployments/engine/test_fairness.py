"""Nobody waits for ever, bulk work has its share, and equals keep their order."""

import math
from dataclasses import dataclass
from itertools import chain

import pytest
from hypothesis import example, given, settings
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


@pytest.mark.parametrize("bulk_cost", [50, 1000, 8192])
def test_bulk_keeps_its_share_under_interactive_load(bulk_cost):
    """While interactive work never ends, bulk gets its fifth, whatever its items cost."""
    queue: WorkQueue[str, int] = WorkQueue(BUDGET, 512, bulk_share=0.2)
    done = {"interactive": 0, "bulk": 0}
    waiting = dict(done)
    for _ in range(200):
        while waiting["interactive"] < 3 * BUDGET:
            push(queue, "interactive", 400)
            waiting["interactive"] += 400
        while waiting["bulk"] < 3 * BUDGET:
            push(queue, "bulk", bulk_cost, "bulk")
            waiting["bulk"] += bulk_cost
        for entry in queue.take():
            done[entry.call.lane] += entry.cost
            waiting[entry.call.lane] -= entry.cost
    share = done["bulk"] / sum(done.values())
    assert 0.15 <= share <= 0.3


@dataclass
class Waiting:
    """An item that waits, since which batch, and how many may come before it at most."""

    queued: QueuedItem
    since: int
    most: int


LARGE_BULK = [("bulk", 8192, 8192)] * 4
QUERY = [("interactive", 10, 10)]
LATER_BATCHES = 600

arrival = st.tuples(
    st.sampled_from(["interactive", "bulk"]),
    st.sampled_from([1, 10, 128, 129, 400, 1024, 2048, 3000, 8192]),
    st.sampled_from([0, 0, 5000]),
)


def longest_waits(
    first: list[tuple[Lane, int, int]],
    later: list[list[tuple[Lane, int, int]]],
    budget: int,
    bulk_share: float = 0.2,
) -> list[Waiting]:
    """Take batches while work keeps arriving; return what waited longer than it may.

    The limits are those of the rule: a kind of work has its turn every fourth batch at the latest,
    and bulk work needs a turn's credit for each of its items besides.
    """
    queue: WorkQueue[int, int] = WorkQueue(budget, 64, bulk_share)
    waiting: dict[QueuedItem, Waiting] = {}
    ahead = {"interactive": 0, "bulk": 0.0}
    late = []
    for batch in range(LATER_BATCHES):
        # What comes later is taken from the same list over and over, so that it never ends.
        for lane, cost, call_cost in first if batch == 0 else later[batch % len(later)]:
            turns = 2 + math.ceil(cost / (0.2 * budget)) if lane == "bulk" else 1
            ahead[lane] += 4 * turns
            queued = push(queue, 0, cost, lane, call_cost)
            waiting[queued] = Waiting(queued, batch, ahead[lane])
        found = queue.take()
        cost = sum(queued.cost for queued in found)
        assert cost <= budget or len(found) == 1
        assert len(found) <= 64
        for queued in found:
            wait = waiting.pop(queued)
            late += [wait] if batch - wait.since > wait.most else []
    return late + [x for x in waiting.values() if LATER_BATCHES - x.since > x.most]


@settings(max_examples=150, deadline=None)
@given(
    first=st.lists(arrival, max_size=12),
    later=st.lists(st.lists(arrival, max_size=3), min_size=1, max_size=5),
    budget=st.sampled_from([2048, BUDGET]),
)
@example(first=LARGE_BULK, later=[QUERY], budget=2048)
@example(first=LARGE_BULK, later=[[("interactive", 2048, 2048)] * 2], budget=2048)
@example(first=[("interactive", BUDGET, BUDGET)], later=[[("bulk", 1, 1)] * 64], budget=BUDGET)
@example(first=[("interactive", 8192, 8192)], later=[QUERY * 64], budget=2048)
def test_whatever_arrives_nobody_waits_for_ever(first, later, budget):
    """Every item has its turn after a number of batches that those ahead of it bound."""
    assert longest_waits(first, later, budget) == []


def test_bulk_work_without_a_share_would_wait_for_ever():
    """The control: with no credit, large bulk texts beside steady queries never run."""
    late = longest_waits(LARGE_BULK, [QUERY], 2048, bulk_share=0.0)
    assert [wait.queued.cost for wait in late] == [8192] * 3  # one went before any query came
    assert longest_waits(LARGE_BULK, [QUERY], 2048) == []


def test_large_bulk_items_beside_steady_queries_take_no_more_than_their_share():
    """Alone in their batches, four times the budget each: bulk has a fifth in all."""
    queue: WorkQueue[str, int] = WorkQueue(2048, 512, bulk_share=0.2)
    for _ in range(60):
        push(queue, "bulk", 8192, "bulk")
    done = {"interactive": 0, "bulk": 0}
    for _ in range(3000):
        while queue.waiting_items < 200:
            push(queue, "query", 400)
        for queued in queue.take():
            done[queued.call.lane] += queued.cost
        if not queue._bulk:
            break
    assert done["bulk"] == 60 * 8192
    assert done["bulk"] / sum(done.values()) == pytest.approx(0.2, abs=0.03)


@settings(max_examples=150, deadline=None)
@given(arrivals=st.lists(arrival, min_size=1, max_size=60), budget=st.sampled_from([300, 2048]))
def test_items_of_one_size_in_one_lane_keep_their_order(arrivals, budget):
    """Items of equal cost of equal calls are taken in the order in which they came."""
    queue: WorkQueue[int, int] = WorkQueue(budget, 8)
    for number, (lane, cost, call_cost) in enumerate(arrivals):
        push(queue, number, cost, lane, call_cost)
        if number % 7 == 6:
            push(queue, -1, 1)  # so that turns change
    order: dict[tuple[object, ...], list[int]] = {}
    while batch := queue.take():
        for queued in batch:
            kind = queued.call.lane, queued.cost, queued.call.cost
            order.setdefault(kind, []).append(queued.item)
    numbers = [[x for x in kind if x >= 0] for kind in order.values()]
    assert all(kind == sorted(kind) for kind in numbers)
    assert sorted(chain.from_iterable(numbers)) == list(range(len(arrivals)))


def test_an_item_over_the_budget_goes_alone_when_its_lane_has_the_turn():
    """A bulk text of four budgets: queries go first until its credit covers it, then it goes."""
    queue: WorkQueue[str, int] = WorkQueue(100, 10, bulk_share=0.2)
    push(queue, "large", 400, "bulk")
    batches = 0
    while True:
        push(queue, "query", 50)
        batch = [queued.item for queued in queue.take()]
        batches += 1
        if "large" in batch:
            break
        assert batch == ["query"]
    assert batch == ["large"]
    assert batches == 21  # 400 / (0.2 * 100), and then its turn
