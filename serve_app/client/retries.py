"""When the client tries again, on top of httpx-retries, and what it raises when it does not."""

import asyncio
import random
import time
from typing import Self

import httpx
from httpx_retries import Retry

from deployments.errors import OverloadedError, TowerUnavailableError
from deployments.model.errors import EmbeddingError

TRANSIENT = (429, 502, 503)
LATER = (OverloadedError, TowerUnavailableError)  # the same of a handle
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0
SPREAD_S = 0.1


class AnswerError(EmbeddingError):
    """The server answered with an error.

    Attributes:
        status: of HTTP.
        code: the server's word for it, such as `INPUT_IMAGE_INVALID`.
        request_id: to find it in the server's log.
        retry_after_s: when the server asks to come back, if it does.
    """

    def __init__(
        self,
        message: str,
        status: int,
        code: str = "",
        request_id: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, status, code, request_id, retry_after_s)
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        """Return the message and where it comes from."""
        return f"{self.args[0]} ({self.status} {self.code}, request {self.request_id})"


class SpreadRetry(Retry):
    """Waits as long as the server asks, else ever longer; always a random bit more.

    httpx-retries does not read `retry-after-ms`, waits exactly as long as `Retry-After` says, and
    cuts its own waits after it has spread them: callers refused together would come back together.
    """

    def backoff_strategy(self) -> float:
        """Return seconds up to twice as long as at the last try."""
        longest_s = self.backoff_factor * 2.0 ** (self.attempts_made - 1)
        longest_s = min(self.max_backoff_wait, longest_s)
        return random.uniform(longest_s / 2, longest_s)

    def wait_s(self, failed: httpx.Response | Exception) -> float:
        """Return how long to wait after an answer, or an error without one."""
        if isinstance(failed, httpx.Response):
            asked_s = self.asked_s(failed)
        else:
            cause = getattr(failed, "cause", None) or failed  # Ray wraps a replica's errors
            asked_s = getattr(cause, "retry_after_s", None)
        if asked_s is None:
            return self.backoff_strategy()
        return asked_s + random.uniform(0, SPREAD_S)

    def asked_s(self, answer: httpx.Response) -> float | None:
        """Return the seconds that an answer asks to wait: retry-after-ms, else Retry-After."""
        try:
            if "retry-after-ms" in answer.headers:
                return max(0.0, float(answer.headers["retry-after-ms"]) / 1000)
            return self.parse_retry_after(answer.headers.get("retry-after", ""))
        except ValueError:
            return None

    def after(self, error: Exception) -> Self:
        """Return what is left of the tries after one that failed.

        Raises:
            Exception: the error itself, if none is.
        """
        if self.is_exhausted():
            raise error
        return self.copy_with(attempts_made=self.attempts_made + 1)  # type: ignore[return-value]

    def sleep(self, response: httpx.Response | Exception) -> None:
        """Wait before the next try."""
        time.sleep(self.wait_s(response))

    async def asleep(self, response: httpx.Response | Exception) -> None:
        """Wait before the next try."""
        await asyncio.sleep(self.wait_s(response))


def retry(max_retries: int) -> SpreadRetry:
    """Return how the client tries again: where a further try may help, so many times at most."""
    return SpreadRetry(
        total=max_retries,
        allowed_methods=["POST"],  # an embedding may be asked for twice
        status_forcelist=TRANSIENT,
        retry_on_exceptions=[httpx.TransportError, *LATER],
        backoff_factor=FIRST_WAIT_S,
        max_backoff_wait=LONGEST_WAIT_S,
    )
