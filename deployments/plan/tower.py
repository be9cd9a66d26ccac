"""A simulated tower: replicas that take time to start, and one queue that all of them serve.

The queue is a fluid while the policy runs; what each request waited is then computed exactly for
the replicas that ran.
"""

import math
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deployments.plan.traffic import Floats, Load

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

STEPS_PER_S = 4


@dataclass(frozen=True, slots=True)
class Tower:
    """What a replica can do, and the limits of the deployment.

    Attributes:
        rate: tokens or images per second of a busy replica.
        startup_s: from the decision to the first batch.
        piece: the largest cost that one replica serves in one go: the Router's chunk.
        batch: the largest cost that a replica runs at once.
        max_queued: cost outstanding above which requests are refused.
        slack_s: the objective: what a request may take beyond its own cost at `rate`.
    """

    rate: float
    startup_s: float = 40.0
    piece: float = math.inf
    batch: float = 0.0
    max_queued: float = math.inf
    min_replicas: int = 1
    max_replicas: int = 64
    slack_s: float = 2.0


class SimulatedReplicas:
    """Replicas of one tower; a new one serves after its start-up."""

    def __init__(self, running: int, startup_s: float) -> None:
        self.running = running
        self._starting: deque[float] = deque()
        self._startup_s = startup_s

    @property
    def count(self) -> int:
        """Running and starting."""
        return self.running + len(self._starting)

    def advance(self, now_s: float) -> None:
        """Let those serve whose start-up is over."""
        while self._starting and self._starting[0] <= now_s:
            self._starting.popleft()
            self.running += 1

    def aim_for(self, target: int, now_s: float) -> None:
        """Start what is missing; stop the newest first, as Serve does."""
        for _ in range(target - self.count):
            self._starting.append(now_s + self._startup_s)
        for _ in range(self.count - target):
            if self._starting:
                self._starting.pop()
            else:
                self.running -= 1


class Queue:
    """The fluid queue: cost admitted in order, and served at the rate of the replicas.

    Args:
        load: its arrivals may begin at negative times.
        tower: rate and limits.
        begin: the first second.
        end: the last, not included.

    Attributes:
        outstanding: cost admitted and not served.
        admitted: cost admitted since the beginning.
        refused: bool [requests].
    """

    def __init__(self, load: Load, tower: Tower, begin: int, end: int) -> None:
        self.outstanding = 0.0
        self.admitted = 0.0
        self.refused = np.zeros(len(load.cost), np.bool_)
        self._tower = tower
        self._cost = load.cost
        self._total = np.concatenate([[0.0], np.cumsum(load.cost)])
        self._pieces = np.concatenate([[0.0], np.cumsum(np.minimum(load.cost, tower.piece))])
        self._position = self._total[1:].copy()
        steps = np.arange(begin * STEPS_PER_S, end * STEPS_PER_S) / STEPS_PER_S
        self._edges = [*np.searchsorted(load.arrival_s, steps).tolist(), len(load.cost)]
        self._step = 0
        self._refused_cost = 0.0
        self._done = 0
        self._served: list[tuple[int, float, float]] = []
        self._running = 0

    def advance(self, running: int) -> None:
        """Let a second pass with so many replicas."""
        capacity = running * self._tower.rate / STEPS_PER_S
        self._served, self._running = [], running
        for step in range(self._step, self._step + STEPS_PER_S):
            first, last = self._edges[step], self._edges[step + 1]
            arriving = self._admit(first, last)
            self.admitted += arriving
            self.outstanding = max(0.0, self.outstanding + arriving - capacity)
            self._served.append((last, self.admitted - self.outstanding, arriving))
        self._step += STEPS_PER_S

    def _admit(self, first: int, last: int) -> float:
        arriving = float(self._total[last] - self._total[first])
        room = self._tower.max_queued - self.outstanding
        if arriving > room:
            return self._admit_each(first, last, room)
        if self._refused_cost:
            self._position[first:last] = self._total[first + 1 : last + 1] - self._refused_cost
        return arriving

    def _admit_each(self, first: int, last: int, room: float) -> float:
        admitted = 0.0
        for index in range(first, last):
            cost = float(self._cost[index])
            # One above the whole budget is admitted when it finds the queue empty.
            if admitted + cost <= room or self.outstanding + admitted == 0:
                admitted += cost
            else:
                self.refused[index] = True
                self._refused_cost += cost
            self._position[index] = self.admitted + admitted
        return admitted

    def count_ongoing(self) -> float:
        """Return the requests in progress: the mean over the last second.

        The fluid knows those that wait at the end of a step. To them come those that came and went
        within one, and the time that a request's last piece takes on one replica over what it would
        take on all of them.
        """
        count, busy = 0.0, max(self._running, 1) * self._tower.rate
        for last, served, arriving in self._served:
            self._done = bisect_right(self._position, served + 1e-6, self._done, last)
            waiting = last - self._done
            if self._refused_cost:
                waiting -= int(self.refused[self._done : last].sum())
            count += (waiting or arriving / busy * STEPS_PER_S) / STEPS_PER_S
        first, last = self._edges[self._step - STEPS_PER_S], self._edges[self._step]
        pieces = float(self._pieces[last] - self._pieces[first])
        return count + min(pieces, busy) * (1 / self._tower.rate - 1 / busy)


def delays(load: Load, tower: Tower, serving: Ints, begin: int, refused: Flags) -> Floats:
    """Return each request's delay beyond its own cost at one replica's rate, in seconds.

    On a clock that runs as fast as the replicas together serve, the queue is a single server with
    a closed form (Lindley 1952). A request is answered when its last piece is: that starts in its
    turn and takes as long as the batch it is in. Infinite where refused.
    """
    capacity = np.concatenate([[0.0], np.cumsum(serving * tower.rate)])
    clock_s = begin + np.arange(len(capacity), dtype=np.float64)
    cost = np.where(refused, 0.0, load.cost)
    arrival = np.interp(load.arrival_s, clock_s, capacity)
    before = np.cumsum(cost) - cost
    start = before + np.maximum.accumulate(arrival - before)
    second = np.clip(load.arrival_s - begin, 0, len(serving) - 1).astype(np.int64)
    replicas = np.maximum(serving[second], 1)
    piece = np.minimum(load.cost, tower.piece)
    batch = np.maximum(piece, np.minimum((start - arrival) / replicas, tower.batch))
    turn = start + cost - piece
    # Beyond the end of the traffic the last replicas go on.
    beyond = np.maximum(turn - capacity[-1], 0.0) / (max(int(serving[-1]), 1) * tower.rate)
    turn_s = np.maximum(np.interp(turn, capacity, clock_s) + beyond, load.arrival_s)
    delay_s = turn_s + batch / tower.rate - load.arrival_s - load.cost / tower.rate
    return np.where(refused, np.inf, delay_s)
