"""When the client tries again, and what it raises when it does not."""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import httpx

from deployments.errors import OverloadedError, TowerUnavailableError
from deployments.model.errors import EmbeddingError

TRANSIENT = (429, 502, 503)
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0


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


@dataclass(frozen=True)
class Retries:
    """How often to try again, and when."""

    max_retries: int

    def wait_s(self, attempt: int, error: Exception) -> float:
        """Return how long to wait before the next try: as the server asks, or ever longer.

        Raises:
            Exception: the error itself, if no further try can help or is left.
        """
        cause = getattr(error, "cause", None) or error  # Ray wraps a replica's errors
        lost = isinstance(cause, (httpx.TransportError, TowerUnavailableError, OverloadedError))
        if attempt >= self.max_retries or not (lost or _status(cause) in TRANSIENT):
            raise error
        asked_s: float | None = getattr(cause, "retry_after_s", None)
        # Random, so that not all callers come back at once.
        if asked_s is not None:
            return asked_s + random.uniform(0, 0.1)
        longest_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0**attempt)
        return random.uniform(longest_s / 2, longest_s)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that an answer asks to wait: retry-after-ms, else Retry-After."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        value = headers.get("retry-after", "")
        if value.strip().isdecimal():
            return float(value)
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _status(error: BaseException) -> int | None:
    return error.status if isinstance(error, AnswerError) else None
