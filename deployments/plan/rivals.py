"""The policies that others run, each over its own settings, on the same simulated tower.

They are told what their operators would measure beforehand: a replica's throughput and the mean
cost of a request. `deployments.plan.policies` has Ray Serve's own loop, and our policy.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from deployments.plan.load import Floats
from deployments.plan.policies import PerSetting, ServeLoop, ServeSettings, request_count
from deployments.plan.simulation import Policy, View
from deployments.plan.tower import Ints, Tower

DAY_S, MINUTE_S = 86_400, 60


@dataclass(frozen=True, slots=True)
class Rival:
    """A policy with all of its settings, to be run side by side.

    Attributes:
        name: of the policy.
        settings: each in words.
        policy: of arrays with an element for each setting.
    """

    name: str
    settings: list[str]
    policy: Policy


class Change:
    """By how much a total that only grows has grown over the last seconds."""

    def __init__(self, seconds: int) -> None:
        self._totals: deque[Any] = deque(maxlen=seconds + 1)

    def __call__(self, total: PerSetting) -> PerSetting:
        """Add the latest total."""
        self._totals.append(total)
        change: PerSetting = total - self._totals[0]
        return change


class HpaLoop:
    """Kubernetes' Horizontal Pod Autoscaler, v2, with the defaults of its controller.

    Every 15 s; a tenth of tolerance; at most twice the pods or 4 more at a time; the highest
    count of the stabilisation window on the way down.
    https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale
    """

    SYNC_S, TOLERANCE, MOST_ADDED = 15, 0.1, 4

    def __init__(
        self, desired: Callable[[View], Floats], stabilization_s: Floats, tower: Tower
    ) -> None:
        self._desired, self._tower = desired, tower
        self._kept = np.maximum(stabilization_s // self.SYNC_S, 1)
        self._wishes: deque[Floats] = deque(maxlen=int(self._kept.max()))
        self._seconds = 0

    def __call__(self, view: View) -> Ints:
        """Return the new targets."""
        desired, current = self._desired(view), np.maximum(view.target, 1)
        self._seconds += 1
        if self._seconds % self.SYNC_S:
            return view.target
        tolerated = np.abs(desired / current - 1) <= self.TOLERANCE
        self._wishes.append(np.where(tolerated, current, np.ceil(desired)))
        wishes = np.array(self._wishes)[::-1]
        within = np.arange(len(wishes))[:, None] < self._kept
        count = np.minimum(
            np.where(within, wishes, 0).max(axis=0),
            np.maximum(2 * current, current + self.MOST_ADDED),
        )
        count = np.clip(count, self._tower.min_replicas, self._tower.max_replicas)
        return np.asarray(count, np.int64)


def _grid(times: int, *values: Sequence[float]) -> tuple[Floats, ...]:
    """Return a column of each, with all combinations, so many times."""
    return tuple(np.array(column) for column in zip(*list(product(*values)) * times, strict=True))


def _named(**columns: Floats) -> list[str]:
    rows = zip(*columns.values(), strict=True)
    return [" ".join(f"{k}={v:g}" for k, v in zip(columns, row, strict=True)) for row in rows]


def count(tower: Tower, times: int) -> Rival:
    """Ray Serve's requests in progress (`ray/serve/autoscaling_policy.py`), told each second."""
    target, delay_s = _grid(times, (0.1, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 2.0), (60.0, 300.0))
    policy = request_count(tower, target, 30.0, 1.0, ServeSettings(0.0, delay_s))
    return Rival(
        "Ray count", _named(target_ongoing_requests=target, downscale_delay_s=delay_s), policy
    )


def utilization(tower: Tower, times: int) -> Rival:
    """HPA on the share of time that GPUs are busy, over 30 s, as its metrics come."""
    target, window_s = _grid(times, (0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.9), (60.0, 300.0))
    change = Change(30)

    def desired(view: View) -> Floats:
        busy = change(view.served) / 30 / tower.rate
        wish: Floats = busy / target
        return wish

    return Rival(
        "HPA utilization",
        _named(utilization=target, stabilization_s=window_s),
        HpaLoop(desired, window_s, tower),
    )


def arrival_rate(tower: Tower, times: int, mean_cost: float) -> Rival:
    """KEDA's Prometheus scaler on requests per second, averaged over a minute, through HPA.

    The threshold is a share of what a replica can do of requests of the mean cost.
    https://keda.sh/docs/latest/scalers/prometheus
    """
    share, window_s = _grid(times, (0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.9), (60.0, 300.0))
    threshold, change = share * tower.rate / mean_cost, Change(MINUTE_S)

    def desired(view: View) -> Floats:
        wish: Floats = change(view.num_requests) / MINUTE_S / threshold
        return wish

    return Rival(
        "KEDA rate",
        _named(share_of_throughput=share, stabilization_s=window_s),
        HpaLoop(desired, window_s, tower),
    )


def queue_length(tower: Tower, times: int) -> Rival:
    """Requests in progress at each replica between two marks, as many scripts and llm-d's do.

    Above the high mark as many as bring it there; below the low one for as long as the cooldown,
    one replica less.
    """
    high, low, cooldown_s = _grid(times, (0.6, 1.0, 2.0, 4.0), (0.3, 0.5), (30.0, 120.0))
    since_s = np.full(len(high), np.inf)

    def desired(view: View) -> Floats:
        ongoing, current = view.count_ongoing(), view.target
        each = ongoing / np.maximum(view.running, 1)
        since_s[:] = np.where(each < low, np.minimum(since_s, view.now_s), np.inf)
        fewer = view.now_s - since_s >= cooldown_s
        since_s[fewer] = view.now_s
        more = np.maximum(np.ceil(ongoing / high), current)
        return np.where(each > high, more, current - fewer).astype(np.float64)

    settings = _named(high=high, low=low, cooldown_s=cooldown_s)
    return Rival("queue length", settings, ServeLoop(desired, ServeSettings(0.0, 0.0), tower))


def velocity(tower: Tower, times: int) -> Rival:
    """Work that arrives over work that a replica does, each per second; no term for a backlog.

    "TokenScale", arXiv 2512.03416, without its convertible decoders, which have no counterpart.
    """
    spare, delay_s = _grid(times, (1.0, 1.1, 1.2, 1.3, 1.5, 1.8, 3.0), (30.0, 120.0, 300.0))
    change = Change(5)

    def desired(view: View) -> Floats:
        wish: Floats = change(view.arrived) / 5 / tower.rate * spare
        return wish

    settings = _named(spare=spare, downscale_delay_s=delay_s)
    return Rival("token velocity", settings, ServeLoop(desired, ServeSettings(0.0, delay_s), tower))


def forecast(tower: Tower, times: int) -> Rival:
    """The next minutes' work: the last ten minutes', and yesterday's at the same time.

    As in "SageServe" (SIGMETRICS 2025), with these two in the place of ARIMA, and its reaction to
    what waits.
    """
    spare, clear_s = _grid(times, (1.0, 1.1, 1.2, 1.3, 1.5, 1.8, 3.0), (10.0, 30.0, np.inf))
    change, totals = Change(10 * MINUTE_S), deque[float](maxlen=DAY_S + 1)

    def desired(view: View) -> Floats:
        totals.append(view.arrived)
        expected = change(view.arrived) / (10 * MINUTE_S)
        if len(totals) == totals.maxlen:
            then = (totals[10 * MINUTE_S] - totals[0]) / (10 * MINUTE_S)
            expected = max(expected, then)
        wish: Floats = (expected * spare + view.outstanding / clear_s) / tower.rate
        return wish

    settings = _named(spare=spare, clear_s=clear_s)
    return Rival("forecast", settings, ServeLoop(desired, ServeSettings(0.0, 60.0), tower))


def chiron(tower: Tower, times: int) -> Rival:
    """Busy replicas over a share of all for what is interactive, batches by their deadline.

    "Chiron" (arXiv 2501.08090): interactive instances are added when the busy share passes a
    mark, and batch instances so that the backlog is done in time.
    """
    marks = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
    mark, deadline_s, delay_s = _grid(times, marks, (2.0, 10.0, 30.0), (60.0, 180.0))
    change = Change(5)

    def desired(view: View) -> Floats:
        busy = change(view.served) / 5 / tower.rate
        wish: Floats = busy / mark + view.outstanding / deadline_s / tower.rate
        return wish

    settings = _named(busy_share=mark, deadline_s=deadline_s, downscale_delay_s=delay_s)
    return Rival("Chiron", settings, ServeLoop(desired, ServeSettings(0.0, delay_s), tower))


def rivals(tower: Tower, mean_cost: float, times: int = 1) -> Iterator[Rival]:
    """Yield all of them, each with its own memory, and all of its settings so many times."""
    yield count(tower, times)
    yield utilization(tower, times)
    yield arrival_rate(tower, times, mean_cost)
    yield queue_length(tower, times)
    yield velocity(tower, times)
    yield forecast(tower, times)
    yield chiron(tower, times)
