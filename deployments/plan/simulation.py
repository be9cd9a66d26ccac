"""Runs an autoscaling policy over a load, second by second, under several settings at once."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from deployments.plan.load import Floats, Load
from deployments.plan.tower import Ints, Queue, SimulatedReplicas, Tower, delays

WARM_UP_S = 900.0


@dataclass(slots=True)
class View:
    """What a policy can see at the end of a second; arrays have an element for each setting.

    Attributes:
        now_s: seconds since the traffic began; negative in the warm-up.
        outstanding: tokens or images admitted and not answered.
        arrived: tokens or images so far, refused ones included, as a Router counts them.
        served: of them, answered.
        num_requests: that have arrived so far.
        count_ongoing: requests in progress; a call, because counting takes time.
        running: replicas that serve.
        target: replicas last aimed for.
    """

    now_s: float
    outstanding: Floats
    arrived: float
    served: Floats
    num_requests: float
    count_ongoing: Callable[[], Floats]
    running: Ints
    target: Ints


Policy = Callable[[View], Ints]
"""Returns the numbers of replicas to aim for; called once a second."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a policy served a load.

    Attributes:
        replicas: int64 [seconds], paid for: starting and running.
        serving: int64 [seconds], running.
        delay_s: float64 [rows], from arrival to answer, less the request's own cost at one
            replica's rate; infinite where refused.
        load: what was served.
        slack_s: the objective: the delay that is still on time.
    """

    replicas: Ints
    serving: Ints
    delay_s: Floats
    load: Load
    slack_s: float

    @property
    def gpu_hours(self) -> float:
        """Replicas paid for, start-up included."""
        return float(self.replicas.sum()) / 3600

    @property
    def share_on_time(self) -> float:
        """Share of items whose request met its objective; a refused one did not."""
        items = self.load.items
        return float(items[self.delay_s <= self.slack_s].sum() / items.sum())

    @property
    def num_refused(self) -> int:
        """Requests refused."""
        return int(self.load.number[np.isinf(self.delay_s)].sum())

    def delay_percentiles_s(self) -> tuple[float, float, float]:
        """Return p50, p95 and p99 over the served items."""
        served = np.isfinite(self.delay_s)
        if not served.any():
            return math.inf, math.inf, math.inf
        delay_s, items = np.maximum(self.delay_s[served], 0.0), self.load.items[served]
        order = np.argsort(delay_s)
        reached = np.cumsum(items[order])
        rank = np.searchsorted(reached, np.array([0.5, 0.95, 0.99]) * reached[-1])
        p50, p95, p99 = delay_s[order][rank].tolist()
        return p50, p95, p99


class Run:
    """A policy that is run over a load, under each of its settings.

    Args:
        startup_s: float64 [settings], goes before the tower's.
        warm_up_s: of the mirrored beginning, which is not counted.
    """

    def __init__(
        self,
        load: Load,
        tower: Tower,
        policy: Policy,
        startup_s: Floats,
        warm_up_s: float = WARM_UP_S,
    ) -> None:
        self._load, self._tower = load, tower
        self._warm = warm = load.warmed_up(warm_up_s)
        num_settings = len(startup_s)
        begin, end = -math.ceil(min(warm_up_s, load.duration_s)), max(math.ceil(load.duration_s), 1)
        self._begin = begin
        self._queue = queue = Queue(warm, tower, begin, end, num_settings)
        first = np.full(num_settings, max(tower.min_replicas, 1), np.int64)
        replicas = SimulatedReplicas(first, startup_s)
        self._paid = np.zeros((end - begin, num_settings), np.int16)
        self._serving = np.zeros_like(self._paid)
        view = View(
            now_s=begin,
            outstanding=queue.outstanding,
            arrived=0.0,
            served=queue.outstanding,
            num_requests=0.0,
            count_ongoing=queue.count_ongoing,
            running=replicas.running,
            target=first,
        )
        for second in range(begin, end):
            replicas.advance(second)
            self._paid[second - begin] = replicas.count
            self._serving[second - begin] = replicas.running
            queue.advance(replicas.running)
            view.now_s = float(second + 1)
            view.outstanding, view.arrived = queue.outstanding, queue.arrived
            view.served = queue.served
            view.num_requests = queue.num_requests
            view.target = policy(view)
            replicas.aim_for(view.target, second + 1)

    def outcome(self, setting: int = 0) -> Outcome:
        """Return how the load was served under one setting."""
        paid, serving = (
            counts[:, setting].astype(np.int64) for counts in (self._paid, self._serving)
        )
        refused = self._queue.refused(setting)
        delay_s = delays(self._warm, self._tower, serving, self._begin, refused)
        counted = len(self._warm.cost) - len(self._load.cost)
        begin = -self._begin
        return Outcome(
            paid[begin:], serving[begin:], delay_s[counted:], self._load, self._tower.slack_s
        )


def simulate(load: Load, tower: Tower, policy: Policy, warm_up_s: float = WARM_UP_S) -> Outcome:
    """Run a policy with one setting over a load."""
    return Run(load, tower, policy, np.array([tower.startup_s]), warm_up_s).outcome()
