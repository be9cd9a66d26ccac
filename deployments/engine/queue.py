"""What waits for a device, and the order in which it is taken.

One rule, deficit round robin over the lanes (Shreedhar and Varghese, 1995): a batch is the turn of
one kind of work. The oldest item of that kind goes first, whatever it costs, so that nothing waits
for ever; one above the whole budget goes alone. The room that is left is filled with what fits.

- bulk: has the turn when its credit covers its oldest item, but not twice running. While
  interactive work waits too, it earns `bulk_share` of every batch, and pays for what it takes in
  its own turn. The credit is at most one batch, or bulk's oldest item where that is larger.
- small: interactive items of calls up to 1/16 of a batch. Where other work waits they have every
  second turn, for up to a quarter of a batch and with nothing else in it: a query waits for one
  batch of documents at most, and is not computed with them. Where more of them wait than that, the
  batch is a full one.
- interactive: has all other turns.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, Literal, TypeVar

from deployments.engine.call import QueuedItem

T = TypeVar("T")
R = TypeVar("R")
Turn = Literal["small", "interactive", "bulk"]

SMALL_PART = 16  # a call up to a sixteenth of a batch is small
SMALL_TURN_PART = 4  # where no more small items wait, they have a batch to themselves
# Items that do not fit, passed over before a batch is closed. In a simulation of texts of 500 to
# 8,192 tokens batches were 5% (budget 2,048) and 12% (16,384) fuller than with 1.
LOOK_AHEAD = 64

# Ordered dicts: the oldest is found, and one in the middle taken out, at once.
Line = OrderedDict[QueuedItem[T, R], None]


class WorkQueue(Generic[T, R]):
    """Waiting items of both lanes; not safe for threads."""

    def __init__(self, max_cost: int, max_items: int, bulk_share: float = 0.2) -> None:
        self.max_cost = max_cost
        self.max_items = max_items
        self.waiting_cost = 0
        self._bulk_share = bulk_share
        self._bulk_credit = 0.0
        self._last_turn: Turn = "interactive"
        self._bulk_had_turn = False  # the last time that it was not the turn of small items
        self._small: Line[T, R] = OrderedDict()
        self._large: Line[T, R] = OrderedDict()
        self._bulk: Line[T, R] = OrderedDict()
        self._lines = self._small, self._large, self._bulk

    @property
    def waiting_items(self) -> int:
        """Number of items that wait."""
        return sum(map(len, self._lines))

    def push(self, item: QueuedItem[T, R]) -> None:
        """Queue one item of a call."""
        is_small = item.call.cost <= max(1, self.max_cost // SMALL_PART)
        interactive = self._small if is_small else self._large
        line = self._bulk if item.call.lane == "bulk" else interactive
        line[item] = None
        self.waiting_cost += item.cost

    def drop(self, item: QueuedItem[T, R]) -> None:
        """Forget an item whose caller is gone, if it still waits."""
        for line in self._lines:
            if item in line:
                self._remove(item, line)

    def expire(self, now_s: float, cost_per_s: float) -> Iterator[QueuedItem[T, R]]:
        """Drop and yield the oldest items that would be done too late, down to a full batch.

        So a device with too much work spends its time on callers who still wait for the answer.
        """
        for line in self._lines:
            while line and self.waiting_cost > self.max_cost:
                oldest = next(iter(line))
                end_s = now_s + max(self.max_cost, oldest.cost) / cost_per_s
                if oldest.call.expires_s >= end_s:
                    break
                self._remove(oldest, line)
                yield oldest

    def take(self) -> list[QueuedItem[T, R]]:
        """Remove and return the items of the next batch; empty if nothing waits."""
        both_wait = bool(self._bulk and (self._small or self._large))
        if not both_wait:
            self._bulk_credit = 0.0
        batch: list[QueuedItem[T, R]] = []
        turn, paid = self._turn(), 0
        if turn == "small":
            self._fill(batch, self._small, max(1, self.max_cost // SMALL_TURN_PART))
            # Calls on both sides of the bound, all alike, would make every second batch small.
            for line in (self._small, self._large, self._bulk) if self._small else ():
                self._fill(batch, line, self.max_cost)
        else:
            if turn == "bulk":
                self._fill(batch, self._bulk, min(self._bulk_credit, self.max_cost))
                paid = cost_of(batch)
            for line in (self._large, self._small, self._bulk):
                self._fill(batch, line, self.max_cost)
            self._bulk_had_turn = turn == "bulk"
        self._last_turn = turn
        if both_wait:
            self._earn(cost_of(batch), paid)
        return batch

    def _turn(self) -> Turn:
        if self._small and (self._large or self._bulk) and self._last_turn != "small":
            return "small"
        if self._bulk and not self._bulk_had_turn:
            oldest = next(iter(self._bulk))
            if self._bulk_credit >= oldest.cost:
                return "bulk"
        return "interactive"

    def _fill(self, batch: list[QueuedItem[T, R]], line: Line[T, R], budget: float) -> None:
        """Move items of a line into a batch, oldest first; what does not fit is passed over.

        The first of a batch is taken whatever it costs.
        """
        room = budget - cost_of(batch)
        taken, passed = [], 0
        for item in line:
            if batch and (room <= 0 or len(batch) == self.max_items or passed == LOOK_AHEAD):
                break
            if not batch or item.cost <= room:
                batch.append(item)
                taken.append(item)
                room -= item.cost
            else:
                passed += 1
        for item in taken:
            self._remove(item, line)

    def _earn(self, cost: int, paid: int) -> None:
        """Give bulk its share of a batch, and take what it has used of its credit."""
        # A batch that was not filled counts as full, or a large text would wait for very many.
        earned_of = cost if self._last_turn == "small" else max(cost, self.max_cost)
        self._bulk_credit += self._bulk_share * earned_of - paid
        most = max([self.max_cost, *(item.cost for item in list(self._bulk)[:1])])
        self._bulk_credit = min(self._bulk_credit, most)

    def _remove(self, item: QueuedItem[T, R], line: Line[T, R]) -> None:
        del line[item]
        self.waiting_cost -= item.cost


def cost_of(items: list[QueuedItem[T, R]]) -> int:
    """Return the cost of items together."""
    return sum(item.cost for item in items)
