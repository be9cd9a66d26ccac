"""The order in which waiting work is taken: two lanes, oldest first, small items not held up.

Rules, each kept by `WorkQueue.take`, which fills one batch up to a cost budget:
1. Interactive items of small calls that wait among others go in a batch of their own, up to a
   quarter of a full one and every other batch at most. So a query waits neither for a queue of
   documents nor for the many items of one call, and is not computed with them.
2. An item that younger ones went ahead of is first in the next batch of its lane: none starves.
3. Otherwise the oldest goes first; a younger one goes ahead only where the older does not fit.
4. Bulk fills what interactive leaves. While both wait, bulk earns `bulk_share` of every batch as
   credit, and goes first as soon as the credit covers its oldest item.
5. While more waits than a batch holds, `WorkQueue.expire` gives up the oldest items whose callers
   would be gone before they are done, so that a device has time for those it can still answer.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from deployments.messages import Lane

T = TypeVar("T")

SMALL_SHARE = 1 / 16  # a call up to this share of a batch is small
EXPRESS_SHARE = 1 / 4  # of a full batch, the most that small items take ahead of their turn
LOOK_AHEAD = 64  # items that do not fit, passed over before a batch is closed


@dataclass(slots=True, eq=False)
class Entry(Generic[T]):
    """One waiting item; `number` is its place in the order of arrival."""

    payload: T
    cost: int
    lane: Lane
    number: int
    is_small: bool
    expires_s: float = math.inf
    dropped: bool = False


@dataclass(slots=True)
class _Room(Generic[T]):
    """What is still free in the batch being filled."""

    cost: int
    items: int
    taken: list[Entry[T]] = field(default_factory=list)

    def take(self, queue: deque[Entry[T]]) -> bool:
        """Move the queue's oldest entry over if it fits."""
        if self.items == 0 or queue[0].cost > self.cost:
            return False
        entry = queue.popleft()
        self.taken.append(entry)
        self.cost -= entry.cost
        self.items -= 1
        return True


class _LaneQueue(Generic[T]):
    """One lane: small and large entries apart, each in order of arrival."""

    def __init__(self) -> None:
        self._small: deque[Entry[T]] = deque()
        self._large: deque[Entry[T]] = deque()
        self._overdue = 0  # number of the entry that younger ones went ahead of

    def push(self, entry: Entry[T]) -> None:
        self._queue_of(entry).append(entry)

    def expired(self, ends_s: Callable[[Entry[T]], float]) -> Entry[T] | None:
        """Return one that is the oldest of its size and would end too late, if there is one."""
        return next((entry for entry in self._heads() if entry.expires_s < ends_s(entry)), None)

    def head(self) -> Entry[T] | None:
        """Return the oldest live entry."""
        return min(self._heads(), key=lambda entry: entry.number, default=None)

    def _heads(self) -> list[Entry[T]]:
        """Return the oldest live entry of each size; dropped ones leave the queues here."""
        heads = []
        for queue in (self._small, self._large):
            while queue and queue[0].dropped:
                queue.popleft()
            if queue:
                heads.append(queue[0])
        return heads

    def small_among_large(self) -> bool:
        """Tell whether entries of both sizes wait."""
        return len(self._heads()) == 2

    def fill_with_small(self, room: _Room[T]) -> None:
        """Move the oldest small entries into a batch of their own."""
        while self._heads() and self._small and room.take(self._small):
            pass

    def fill(self, room: _Room[T]) -> None:
        """Move entries into the batch by the rules of this module."""
        first = len(room.taken)
        head = self.head()
        if head is not None and head.number == self._overdue:
            room.take(self._queue_of(head))
        self._oldest_first(room)
        left = self.head()
        passed = left and any(entry.number > left.number for entry in room.taken[first:])
        self._overdue = left.number if left and passed else 0

    def _queue_of(self, entry: Entry[T]) -> deque[Entry[T]]:
        return self._small if entry.is_small else self._large

    def _oldest_first(self, room: _Room[T]) -> None:
        passed: list[Entry[T]] = []
        while room.items and room.cost and len(passed) < LOOK_AHEAD and (head := self.head()):
            queue = self._queue_of(head)
            if not room.take(queue):
                passed.append(queue.popleft())
        for entry in reversed(passed):
            self._queue_of(entry).appendleft(entry)


class WorkQueue(Generic[T]):
    """Waiting entries of both lanes; not safe for threads."""

    def __init__(self, max_cost: int, max_items: int, bulk_share: float = 0.2) -> None:
        self.max_cost = max_cost
        self.max_items = max_items
        self.waiting_items = 0
        self.waiting_cost = 0
        self._bulk_share = bulk_share
        self._bulk_credit = 0.0
        self._was_express = False
        self._arrivals = 0
        self._small_cost = max(1, int(max_cost * SMALL_SHARE))
        self._lanes: dict[Lane, _LaneQueue[T]] = {"interactive": _LaneQueue(), "bulk": _LaneQueue()}

    def push(
        self,
        payload: T,
        cost: int,
        lane: Lane = "interactive",
        call_cost: int = 0,
        expires_s: float = math.inf,
    ) -> Entry[T]:
        """Queue one item of a call of `call_cost` in all; nobody waits for it after `expires_s`."""
        self._arrivals += 1
        is_small = max(cost, call_cost) <= self._small_cost
        entry = Entry(payload, cost, lane, self._arrivals, is_small, expires_s)
        self._lanes[lane].push(entry)
        self.waiting_items += 1
        self.waiting_cost += cost
        return entry

    def drop(self, entry: Entry[T]) -> None:
        """Forget a waiting entry whose caller is gone."""
        if not entry.dropped:
            entry.dropped = True
            self._leave(entry)

    def expire(self, now_s: float, cost_per_s: float) -> Iterator[Entry[T]]:
        """Drop and yield the oldest entries that would be done too late, down to a full batch."""

        def ends_s(entry: Entry[T]) -> float:
            return now_s + max(self.max_cost, entry.cost) / cost_per_s

        for lane in self._lanes.values():
            while self.waiting_cost > self.max_cost and (entry := lane.expired(ends_s)):
                self.drop(entry)
                yield entry

    def take(self) -> list[Entry[T]]:
        """Remove and return the entries of the next batch; empty if nothing waits.

        An entry dearer than the whole budget goes alone, so that it cannot block the queue.
        """
        room = self._express() or self._regular()
        for entry in room.taken:
            entry.dropped = True  # taken: a later drop must not count it again
            self._leave(entry)
        return room.taken

    def _express(self) -> _Room[T] | None:
        """Fill a batch with small interactive entries alone, if it is their turn."""
        lane, bulk = self._lanes["interactive"], self._lanes["bulk"].head()
        room: _Room[T] = _Room(int(self.max_cost * EXPRESS_SHARE), self.max_items)
        if not self._was_express and (lane.small_among_large() or bulk is not None):
            lane.fill_with_small(room)
        self._was_express = bool(room.taken)
        return room if room.taken else None

    def _regular(self) -> _Room[T]:
        interactive, bulk = (self._lanes[lane].head() for lane in ("interactive", "bulk"))
        room: _Room[T] = _Room(self.max_cost, self.max_items)
        if interactive and bulk:
            self._bulk_credit += self._bulk_share * self.max_cost
            if self._bulk_credit >= min(bulk.cost, self.max_cost):
                self._fill_from_credit(room)
        else:
            self._bulk_credit = 0.0
        for lane in self._lanes.values():
            head = lane.head()
            if head and head.cost > self.max_cost and not room.taken:
                room = _Room(head.cost, 1)
            lane.fill(room)
        return room

    def _fill_from_credit(self, room: _Room[T]) -> None:
        """Let bulk spend its credit before interactive chooses."""
        part: _Room[T] = _Room(min(int(self._bulk_credit), room.cost), room.items)
        spendable = part.cost
        self._lanes["bulk"].fill(part)
        spent = spendable - part.cost
        self._bulk_credit -= spent
        room.cost -= spent
        room.items = part.items
        room.taken.extend(part.taken)

    def _leave(self, entry: Entry[T]) -> None:
        self.waiting_items -= 1
        self.waiting_cost -= entry.cost
