"""A simulated tower: replicas that take time to start, and one queue that all of them serve.

Several settings of a policy are simulated side by side on the same load: what differs between them
is an array with an element for each. The queue is a fluid while the policy runs; what each request
waited is then computed for the replicas that ran.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deployments.plan.load import STEPS_PER_S, Floats, Load

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


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
    """Replicas of one tower under each setting; a new one serves after its start-up.

    Args:
        running: int64 [settings], those that serve at the beginning.
        startup_s: float64 [settings], whole seconds; a fraction counts as one more.

    Attributes:
        running: int64 [settings], those that serve.
        count: int64 [settings], running and starting.
    """

    def __init__(self, running: Ints, startup_s: Floats) -> None:
        self.running = running.copy()
        self.count = running.copy()
        self._startup = np.ceil(startup_s).astype(np.int64)
        self._settings = np.arange(len(running))
        self._starting = np.zeros((int(self._startup.max()) + 1, len(running)), np.int64)

    def advance(self, second: int) -> None:
        """Let those serve whose start-up is over."""
        ready = self._starting[second % len(self._starting)]
        self.running += ready
        ready[:] = 0

    def aim_for(self, target: Ints, second: int) -> None:
        """Start what is missing; stop the newest first, as Serve does."""
        missing = target - self.count
        if not missing.any():
            return
        slots = (second + self._startup) % len(self._starting)
        self._starting[slots, self._settings] += np.maximum(missing, 0)
        for setting in np.flatnonzero(missing < 0):
            self._stop(int(setting), int(-missing[setting]), second)
        self.count += missing

    def _stop(self, setting: int, surplus: int, second: int) -> None:
        startup = int(self._startup[setting])
        for until_s in range(startup, 0, -1):
            slot = (second + until_s) % len(self._starting)
            stopped = min(int(self._starting[slot, setting]), surplus)
            self._starting[slot, setting] -= stopped
            surplus -= stopped
            if not surplus:
                return
        self.running[setting] -= surplus


class Queue:
    """The fluid queue: cost admitted in order, and served at the rate of the replicas.

    Args:
        load: its arrivals may begin at negative times.
        tower: rate and limits.
        begin: the first second.
        end: the last, not included.
        num_settings: simulated side by side.

    Attributes:
        outstanding: float64 [settings], cost admitted and not served.
        arrived: cost that has arrived since the beginning.
        refused_cost: float64 [settings], of it.
    """

    def __init__(self, load: Load, tower: Tower, begin: int, end: int, num_settings: int) -> None:
        self.outstanding = np.zeros(num_settings)
        self.arrived = 0.0
        self.refused_cost = np.zeros(num_settings)
        self._refused: list[list[int]] = [[] for _ in range(num_settings)]
        self._tower = tower
        self._cost = load.cost
        self._total = np.cumsum(load.cost)
        self._number = np.concatenate([[0.0], np.cumsum(load.number)])
        steps = np.arange(begin * STEPS_PER_S, end * STEPS_PER_S) / STEPS_PER_S
        edges = [*np.searchsorted(load.arrival_s, steps).tolist(), len(load.cost)]
        self._edges = edges
        total = np.concatenate([[0.0], self._total])
        self._arriving = np.diff(total[edges])
        self._within = np.cumsum(self._arriving.reshape(-1, STEPS_PER_S, 1), axis=1)
        pieces = np.minimum(load.cost, tower.piece * load.number)
        self._pieces = np.diff(np.concatenate([[0.0], np.cumsum(pieces)])[edges[::STEPS_PER_S]])
        self._step = 0
        self._running = np.ones(num_settings, np.int64)
        self._after = np.zeros((STEPS_PER_S, num_settings))
        self._upto = np.zeros(STEPS_PER_S)
        self._passed = np.arange(1.0, STEPS_PER_S + 1)[:, None]

    @property
    def served(self) -> Floats:
        """Cost served since the beginning, float64 [settings]."""
        return self.arrived - self.refused_cost - self.outstanding

    @property
    def num_requests(self) -> float:
        """Requests that have arrived since the beginning."""
        return float(self._number[self._edges[self._step]])

    def advance(self, running: Ints) -> None:
        """Let a second pass with so many replicas."""
        capacity = running * (self._tower.rate / STEPS_PER_S)
        self._running = running
        within = self._within[self._step // STEPS_PER_S]
        if self.outstanding.max() + within[-1, 0] <= self._tower.max_queued:
            # None is refused: what the steps would have left is what they were short of besides.
            left = self.outstanding + within - self._passed * capacity
            idle = np.minimum(np.minimum.accumulate(left), 0.0)
            self._after = left - idle
            self.outstanding = self._after[-1]
            self._upto = self.arrived + within[:, 0]
            self.arrived = float(self._upto[-1])
            self._step += STEPS_PER_S
            return
        for place in range(STEPS_PER_S):
            self._admit(float(self._arriving[self._step]))
            self.outstanding = np.maximum(self.outstanding - capacity, 0.0)
            self._after[place] = self.outstanding
            self._upto[place] = self.arrived
            self._step += 1

    def _admit(self, arriving: float) -> None:
        before = self.outstanding
        self.outstanding = before + arriving
        self.arrived += arriving
        if self.outstanding.max() > self._tower.max_queued:
            for setting in np.flatnonzero(self.outstanding > self._tower.max_queued):
                self._admit_each(int(setting), float(before[setting]))

    def _admit_each(self, setting: int, outstanding: float) -> None:
        for index in range(self._edges[self._step], self._edges[self._step + 1]):
            cost = float(self._cost[index])
            # One above the whole budget is admitted when it finds the queue empty.
            if outstanding + cost <= self._tower.max_queued or outstanding == 0:
                outstanding += cost
            else:
                self._refused[setting].append(index)
                self.refused_cost[setting] += cost
        self.outstanding[setting] = outstanding

    def refused(self, setting: int) -> Flags:
        """Return which rows of the load were refused under a setting."""
        flags = np.zeros(len(self._cost), np.bool_)
        flags[self._refused[setting]] = True
        return flags

    def count_ongoing(self) -> Floats:
        """Return the requests in progress, float64 [settings]: the mean over the last second.

        Those that wait at the end of a step are taken to be the last that arrived. To them come
        those that came and went within a step, and the time that a request's last piece takes on
        one replica over what it would take on all of them.
        """
        busy = np.maximum(self._running, 1) * self._tower.rate
        served = self._upto[:, None] - self._after
        first = self._number[np.searchsorted(self._total, served + 1e-6, side="right")]
        last = self._number[self._edges[self._step - STEPS_PER_S + 1 : self._step + 1]]
        waiting = np.maximum(last[:, None] - first, 0.0)
        arriving = self._arriving[self._step - STEPS_PER_S : self._step]
        passing = arriving[:, None] / busy * STEPS_PER_S
        count = np.where(waiting > 0, waiting, passing).mean(axis=0)
        pieces = float(self._pieces[self._step // STEPS_PER_S - 1])
        ongoing: Floats = count + np.minimum(pieces, busy) * (1 / self._tower.rate - 1 / busy)
        return ongoing


def delays(load: Load, tower: Tower, serving: Ints, begin: int, refused: Flags) -> Floats:
    """Return each row's delay beyond a request's own cost at one replica's rate, in seconds.

    On a clock that runs as fast as the replicas together serve, the queue is a single server with
    a closed form (Lindley 1952). A request is answered when its last piece is: that starts in its
    turn and takes as long as the batch it is in. Infinite where refused.
    """
    capacity = np.concatenate([[0.0], np.cumsum(serving * tower.rate)])
    clock_s = begin + np.arange(len(capacity), dtype=np.float64)
    cost = np.where(refused, 0.0, load.cost) if refused.any() else load.cost
    arrival = np.interp(load.arrival_s, clock_s, capacity)
    before = np.cumsum(cost) - cost
    start = before + np.maximum.accumulate(arrival - before)
    second = np.clip(load.arrival_s - begin, 0, len(serving) - 1).astype(np.int64)
    replicas = np.maximum(serving[second], 1)
    each = load.cost / load.number
    piece = np.minimum(each, tower.piece)
    batch = np.maximum(piece, np.minimum((start - arrival) / replicas, tower.batch))
    turn = start + cost - piece
    # Beyond the end of the traffic the last replicas go on.
    beyond = np.maximum(turn - capacity[-1], 0.0) / (max(int(serving[-1]), 1) * tower.rate)
    turn_s = np.maximum(np.interp(turn, capacity, clock_s) + beyond, load.arrival_s)
    delay_s: Floats = turn_s + batch / tower.rate - load.arrival_s - each / tower.rate
    delay_s[refused] = np.inf
    return delay_s
