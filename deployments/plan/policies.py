"""The policies to compare: ours, and the request counting that Ray Serve does by default.

Both go through `ServeLoop`, Serve's own treatment of the count that a policy asks for. A policy
runs with several settings side by side: its arguments are arrays with an element for each.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from deployments.config import SERVE_SETTINGS
from deployments.plan.load import Floats
from deployments.plan.simulation import View
from deployments.plan.tower import Ints, Tower
from deployments.rehearsal import Memory, Observation, Targets, decide

PerSetting = float | Floats


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """The fields of Serve's `autoscaling_config` for delays and gain; the defaults are Serve's."""

    upscale_delay_s: PerSetting = 30.0
    downscale_delay_s: PerSetting = 600.0
    upscaling_factor: float = 1.0
    downscaling_factor: float = 1.0


class ServeLoop:
    """Applies gain, delays and bounds as Ray Serve 2.60 does (`serve/autoscaling_policy.py`)."""

    def __init__(
        self,
        desired: Callable[[View], Floats],
        settings: ServeSettings,
        tower: Tower,
        max_replicas: PerSetting | None = None,
    ) -> None:
        self._desired = desired
        self._settings = settings
        self._least = tower.min_replicas
        self._most = tower.max_replicas if max_replicas is None else max_replicas
        self._direction: Ints | None = None
        self._since_s: PerSetting = 0.0

    def __call__(self, view: View) -> Ints:
        """Return the new targets."""
        desired = self._desired(view)
        count = self._delayed(self._gained(desired, view.running), view)
        if not view.running.all():
            waking = np.maximum(np.ceil(self._settings.upscaling_factor), view.target)
            asleep = np.where(view.outstanding > 0, waking, np.ceil(desired))
            awake = (view.running > 0) | (view.outstanding <= 0) & (desired <= 0)
            count = np.where(awake, count, asleep)
        return np.clip(count, self._least, self._most).astype(np.int64)

    def _gained(self, desired: Floats, running: Ints) -> Floats:
        up, down = self._settings.upscaling_factor, self._settings.downscaling_factor
        if up == down == 1.0:
            return np.ceil(desired)
        missing = desired - running
        count = np.ceil(running + np.where(missing > 0, up, down) * missing)
        stuck = (np.ceil(desired) < running) & (count == running)
        return np.maximum(np.where(stuck, count - 1, count), 0)

    def _delayed(self, count: Floats, view: View) -> Floats:
        """Hold a change back until it was asked for without a break for as long as its delay."""
        direction = np.sign(count - view.target).astype(np.int64)
        if self._direction is None or (direction != self._direction).any():
            turned = self._direction is None or direction != self._direction
            self._since_s = np.where(turned, view.now_s, self._since_s)
            self._direction = direction
        if not direction.any():
            return count
        count = np.where((direction < 0) & (view.target > 1), np.maximum(count, 1), count)
        up, down = self._settings.upscale_delay_s, self._settings.downscale_delay_s
        early = view.now_s - self._since_s < np.where(direction > 0, up, down)
        self._direction = np.where(early, direction, 0)
        return np.where(early, view.target, count)


class RequestCount:
    """Ray Serve's default policy: requests in progress over a target for each replica.

    Args:
        target_ongoing_requests: of each replica.
        look_back_s: over which the requests in progress are averaged.
        metrics_interval_s: how often they are reported.
    """

    def __init__(
        self,
        target_ongoing_requests: PerSetting = 2.0,
        look_back_s: float = 30.0,
        metrics_interval_s: float = 10.0,
    ) -> None:
        self._target = target_ongoing_requests
        self._ongoing: deque[Floats] = deque(maxlen=max(round(look_back_s), 1))
        self._interval = max(round(metrics_interval_s), 1)
        self._seconds = 0
        self._sum = self._mean = np.zeros(1)

    def __call__(self, view: View) -> Floats:
        """Return the replicas, as a fraction, that the requests in progress call for."""
        if len(self._ongoing) == self._ongoing.maxlen:
            self._sum = self._sum - self._ongoing[0]
        self._ongoing.append(view.count_ongoing())
        self._sum = self._sum + self._ongoing[-1]
        self._seconds += 1
        if self._seconds % self._interval == 0:
            self._mean = self._sum / len(self._ongoing)
        # With no replica Serve keeps its target; requests then start one without the policy.
        desired: Floats = np.where(view.running > 0, self._mean / self._target, view.target)
        return desired


class WorkBased:
    """Our policy, fed by the simulation in the place of Routers and towers."""

    def __init__(self, targets: Sequence[Targets], tower: Tower) -> None:
        self._targets = targets
        self._tower = tower
        self._memories = [Memory() for _ in targets]

    def __call__(self, view: View) -> Floats:
        """Return the replicas that the work calls for."""
        counts = np.zeros(len(self._targets))
        state = zip(
            view.outstanding.tolist(),
            view.target.tolist(),
            view.running.tolist(),
            strict=True,
        )
        for setting, (outstanding, target, running) in enumerate(state):
            seen = Observation(
                now_s=view.now_s,
                outstanding=outstanding,
                queued=0.0,
                arrived={"router": view.arrived},
                throughput=self._tower.rate,
                target=target,
                running=running,
                least=self._tower.min_replicas,
                most=self._tower.max_replicas,
            )
            counts[setting], self._memories[setting] = decide(
                seen, self._targets[setting], self._memories[setting]
            )
        return counts


def work_based(tower: Tower, *targets: Targets) -> ServeLoop:
    """Return our policy as it is shipped, with these targets."""
    settings = ServeSettings(SERVE_SETTINGS["upscale_delay_s"], SERVE_SETTINGS["downscale_delay_s"])
    return ServeLoop(WorkBased(targets, tower), settings, tower)


def request_count(
    tower: Tower,
    target_ongoing_requests: PerSetting = 2.0,
    look_back_s: float = 30.0,
    metrics_interval_s: float = 10.0,
    settings: ServeSettings = ServeSettings(),
    max_replicas: PerSetting | None = None,
) -> ServeLoop:
    """Return Ray Serve's default policy; the defaults are Serve's."""
    counting = RequestCount(target_ongoing_requests, look_back_s, metrics_interval_s)
    return ServeLoop(counting, settings, tower, max_replicas)
