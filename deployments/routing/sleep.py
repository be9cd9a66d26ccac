"""A tower that may have no replica: since when it is asked for, and when it will be there."""

import time
from collections.abc import Callable
from typing import Literal

from deployments.config import TowerConfig

Asleep = Literal["hold", "refuse"]
FRESH_S = 2.0  # for so long after an answer a tower is taken to be awake
PATIENCE = 3.0  # start-ups, after which a tower that is asked for does not start


class Sleep:
    """What one Router knows of one tower's sleep.

    Args:
        tower: its replicas; where the least is not 0, it never sleeps.
        asleep: what a request meets that finds it asleep.
        startup_s: how long it takes to wake.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        tower: TowerConfig,
        asleep: Asleep,
        startup_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.may_sleep = tower.least_replicas == 0
        self.refuses = self.may_sleep and asleep == "refuse"
        self._startup_s, self._clock = startup_s, clock
        self._asked_s: float | None = None
        self._heard_s = float("-inf")

    @property
    def is_awake(self) -> bool:
        """Whether it has answered of late."""
        return self._heard_s > self._clock() - FRESH_S

    @property
    def fails(self) -> bool:
        """Whether it has been asked for so long that it should have answered."""
        return self._waited_s > PATIENCE * self._startup_s

    @property
    def left_s(self) -> float:
        """Seconds until it should be there, 1 at least."""
        return max(self._startup_s - self._waited_s, 1.0)

    def asked(self) -> None:
        """Note that work is there for it."""
        if self._asked_s is None:
            self._asked_s = self._clock()

    def heard(self) -> None:
        """Note an answer."""
        self._asked_s, self._heard_s = None, self._clock()

    @property
    def _waited_s(self) -> float:
        return 0.0 if self._asked_s is None else self._clock() - self._asked_s
