"""The policies to compare: ours, and the request counting that Ray Serve does by default.

Both go through `ServeLoop`, Serve's own treatment of the count that a policy asks for.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from deployments.autoscaling import Memory, Observation, Targets, decide
from deployments.config import SERVE_SETTINGS
from deployments.plan.simulation import View
from deployments.plan.tower import Tower


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """The fields of Serve's `autoscaling_config` for delays and gain; the defaults are Serve's."""

    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    upscaling_factor: float = 1.0
    downscaling_factor: float = 1.0


class ServeLoop:
    """Applies gain, delays and bounds as Ray Serve 2.60 does (`serve/autoscaling_policy.py`)."""

    def __init__(
        self, desired: Callable[[View], float], settings: ServeSettings, tower: Tower
    ) -> None:
        self._desired = desired
        self._settings = settings
        self._tower = tower
        self._direction = 0
        self._since_s = 0.0

    def __call__(self, view: View) -> int:
        """Return the new target."""
        desired = self._desired(view)
        if view.running == 0 and view.outstanding > 0:
            count = max(math.ceil(self._settings.upscaling_factor), view.target)
        elif view.running == 0 and desired > 0:
            count = math.ceil(desired)
        else:
            count = self._delayed(self._gained(desired, view.running), view)
        return min(max(count, self._tower.min_replicas), self._tower.max_replicas)

    def _gained(self, desired: float, running: int) -> int:
        missing = desired - running
        up, down = self._settings.upscaling_factor, self._settings.downscaling_factor
        count = math.ceil(running + (up if missing > 0 else down) * missing)
        stuck = math.ceil(desired) < running and count == running
        return max(count - 1 if stuck else count, 0)

    def _delayed(self, count: int, view: View) -> int:
        """Hold a change back until it was asked for without a break for as long as its delay."""
        direction = (count > view.target) - (count < view.target)
        if direction != self._direction:
            self._direction, self._since_s = direction, view.now_s
        if direction < 0 and view.target > 1:
            count = max(count, 1)
        up, down = self._settings.upscale_delay_s, self._settings.downscale_delay_s
        if direction and view.now_s - self._since_s < (up if direction > 0 else down):
            return view.target
        self._direction = 0
        return count


class RequestCount:
    """Ray Serve's default policy: requests in progress over a target for each replica.

    Args:
        target_ongoing_requests: of each replica.
        look_back_s: over which the requests in progress are averaged.
        metrics_interval_s: how often they are reported.
    """

    def __init__(
        self,
        target_ongoing_requests: float = 2.0,
        look_back_s: float = 30.0,
        metrics_interval_s: float = 10.0,
    ) -> None:
        self._target = target_ongoing_requests
        self._ongoing: deque[float] = deque(maxlen=max(round(look_back_s), 1))
        self._interval = max(round(metrics_interval_s), 1)
        self._seconds = 0
        self._mean = 0.0

    def __call__(self, view: View) -> float:
        """Return the replicas, as a fraction, that the requests in progress call for."""
        self._ongoing.append(view.count_ongoing())
        self._seconds += 1
        if self._seconds % self._interval == 0:
            self._mean = sum(self._ongoing) / len(self._ongoing)
        # With no replica Serve keeps its target; requests then start one without the policy.
        return self._mean / self._target if view.running else float(view.target)


class WorkBased:
    """Our policy, fed by the simulation in the place of Routers and towers."""

    def __init__(self, targets: Targets, throughput: float) -> None:
        self._targets = targets
        self._throughput = throughput
        self._memory = Memory()

    def __call__(self, view: View) -> float:
        """Return the replicas that the work calls for."""
        seen = Observation(
            now_s=view.now_s,
            outstanding=view.outstanding,
            queued=0.0,
            arrived={"router": view.arrived},
            throughput=self._throughput,
            target=view.target,
        )
        count, self._memory = decide(seen, self._targets, self._memory)
        return count


def work_based(targets: Targets, tower: Tower) -> ServeLoop:
    """Return our policy as it is shipped, with these targets."""
    settings = ServeSettings(SERVE_SETTINGS["upscale_delay_s"], SERVE_SETTINGS["downscale_delay_s"])
    return ServeLoop(WorkBased(targets, tower.rate), settings, tower)


def request_count(
    tower: Tower,
    target_ongoing_requests: float = 2.0,
    look_back_s: float = 30.0,
    metrics_interval_s: float = 10.0,
    settings: ServeSettings = ServeSettings(),
) -> ServeLoop:
    """Return Ray Serve's default policy; the defaults are Serve's."""
    counting = RequestCount(target_ongoing_requests, look_back_s, metrics_interval_s)
    return ServeLoop(counting, settings, tower)
