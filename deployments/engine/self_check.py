"""Runs a tower's canary: once before it serves, then every so often between batches."""

import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import Future

from deployments.engine.canary import THRESHOLD, passes

logger = logging.getLogger("ray.serve")

STUCK_S = 120.0

Submit = Callable[[Callable[[], float]], "Future[float]"]


class SelfCheck:
    """Keeps a tower's last cosine and says when the tower is not to be trusted.

    Args:
        run: runs the canary and returns its lowest cosine; called on the device's thread.
        period_s: seconds from one run to the next; 0 for none after the first.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        run: Callable[[], float],
        period_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cosine = math.nan
        self._run = run
        self._period_s = period_s
        self._clock = clock
        self._running: Future[float] | None = None
        self._last_s = clock()

    @property
    def running(self) -> bool:
        """Whether the canary waits for the device or runs on it."""
        return self._running is not None and not self._running.done()

    def accept(self, cosine: float) -> None:
        """Take the cosine found before serving.

        Raises:
            RuntimeError: it is too low.
        """
        self.cosine = cosine
        logger.info("golden self-check: lowest cosine %.6f", cosine)
        self._require()

    def poll(self, submit: Submit) -> None:
        """Take the result of a run that has ended, and begin the next when it is time.

        Args:
            submit: puts a function on the device's thread, behind the batch that runs there.

        Raises:
            RuntimeError: the rows have drifted, or the canary does not come to its end.
        """
        if self._running is not None and self._running.done():
            self._collect(self._running)
        self._require()
        elapsed_s = self._clock() - self._last_s
        if self._running is not None:
            if elapsed_s > STUCK_S:
                raise RuntimeError(f"the golden self-check has not ended within {STUCK_S:.0f} s")
        elif self._period_s and elapsed_s >= self._period_s:
            self._last_s = self._clock()
            self._running = submit(self._run)

    def _collect(self, ended: "Future[float]") -> None:
        self._running, self._last_s = None, self._clock()
        try:
            self.cosine = ended.result()
        except MemoryError:
            logger.warning("too little device memory for the golden self-check; later again")
        except Exception:
            self.cosine = math.nan
            logger.exception("the golden self-check failed")

    def _require(self) -> None:
        if not passes(self.cosine):
            raise RuntimeError(
                f"the golden self-check gives cosine {self.cosine:.6f}, below {THRESHOLD}: this "
                "replica's device, kernels or weights are not to be trusted; try another "
                "model.attention, model.compile or model.dtype, and look at the GPU"
            )
