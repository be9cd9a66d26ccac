"""Runs an autoscaling policy over a load, second by second, and returns the result."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from deployments.plan.tower import Ints, Queue, SimulatedReplicas, Tower, delays
from deployments.plan.traffic import Floats, Load

WARM_UP_S = 900.0


@dataclass(slots=True)
class View:
    """What a policy can see at the end of a second.

    Attributes:
        now_s: seconds since the traffic began; negative in the warm-up.
        outstanding: tokens or images admitted and not answered.
        arrived: tokens or images admitted so far.
        count_ongoing: requests in progress; a call, because counting takes time.
        running: replicas that serve.
        target: replicas last aimed for.
    """

    now_s: float
    outstanding: float
    arrived: float
    count_ongoing: Callable[[], float]
    running: int
    target: int


Policy = Callable[[View], int]
"""Returns the number of replicas to aim for; called once a second."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a policy served a load.

    Attributes:
        replicas: int64 [seconds], paid for: starting and running.
        serving: int64 [seconds], running.
        delay_s: float64 [requests], from arrival to answer, less the request's own cost at one
            replica's rate; infinite where refused.
        items: float64 [requests], how many embeddings each asked for.
        slack_s: the objective: the delay that is still on time.
    """

    replicas: Ints
    serving: Ints
    delay_s: Floats
    items: Floats
    slack_s: float

    @property
    def gpu_hours(self) -> float:
        """Replicas paid for, start-up included."""
        return float(self.replicas.sum()) / 3600

    @property
    def share_on_time(self) -> float:
        """Share of items whose request met its objective; a refused one did not."""
        return float(self.items[self.delay_s <= self.slack_s].sum() / self.items.sum())

    @property
    def num_refused(self) -> int:
        """Requests refused."""
        return int(np.isinf(self.delay_s).sum())

    def delay_percentiles_s(self) -> tuple[float, float, float]:
        """Return p50, p95 and p99 over the served items."""
        served = np.isfinite(self.delay_s)
        if not served.any():
            return math.inf, math.inf, math.inf
        delay_s, items = np.maximum(self.delay_s[served], 0.0), self.items[served]
        order = np.argsort(delay_s)
        reached = np.cumsum(items[order])
        rank = np.searchsorted(reached, np.array([0.5, 0.95, 0.99]) * reached[-1])
        p50, p95, p99 = delay_s[order][rank].tolist()
        return p50, p95, p99


def simulate(load: Load, tower: Tower, policy: Policy, warm_up_s: float = WARM_UP_S) -> Outcome:
    """Run a policy over a load, after an uncounted warm-up on its mirrored beginning."""
    warm = load.warmed_up(warm_up_s)
    begin, end = -math.ceil(min(warm_up_s, load.duration_s)), max(math.ceil(load.duration_s), 1)
    queue = Queue(warm, tower, begin, end)
    replicas = SimulatedReplicas(max(tower.min_replicas, 1), tower.startup_s)
    paid, serving = np.zeros(end - begin, np.int64), np.zeros(end - begin, np.int64)
    view = View(begin, 0.0, 0.0, queue.count_ongoing, replicas.running, replicas.count)
    for second in range(end - begin):
        replicas.advance(begin + second)
        paid[second], serving[second] = replicas.count, replicas.running
        queue.advance(replicas.running)
        view.now_s, view.running = float(begin + second + 1), replicas.running
        view.outstanding, view.arrived = queue.outstanding, queue.admitted
        view.target = policy(view)
        replicas.aim_for(view.target, view.now_s)
    delay_s = delays(warm, tower, serving, begin, queue.refused)
    counted = len(warm.cost) - len(load.cost)
    return Outcome(paid[-begin:], serving[-begin:], delay_s[counted:], load.items, tower.slack_s)
