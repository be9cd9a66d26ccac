"""How an exception looks on the wire: one table from its type to status, code and body.

One body serves every client: `detail` is a string (Jina's form), and `error` is OpenAI's object.
"""

import logging
from dataclasses import dataclass

from deployments.model.errors import ImageError, InputError, OptionError, TextTooLongError
from deployments.work import (
    BodyTooLargeError,
    DeadlineError,
    ImageSourceError,
    OverloadedError,
    RequestError,
    RequestTooLargeError,
    ServiceError,
    TowerUnavailableError,
    UnauthorizedError,
    UnknownModelError,
)

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Answer:
    """Status and code of an error, and the type that OpenAI's clients read."""

    status: int
    code: str
    kind: str = "invalid_request_error"


# The first entry along the exception's class hierarchy wins.
TABLE: dict[type[BaseException], Answer] = {
    TextTooLongError: Answer(400, "INPUT_TOKEN_LIMIT_EXCEEDED"),
    ImageSourceError: Answer(400, "INPUT_IMAGE_UNAVAILABLE"),
    ImageError: Answer(400, "INPUT_IMAGE_INVALID"),
    OptionError: Answer(422, "INPUT_OPTION_INVALID"),
    UnknownModelError: Answer(400, "INPUT_MODEL_NOT_FOUND"),
    BodyTooLargeError: Answer(413, "INPUT_BODY_TOO_LARGE"),
    RequestTooLargeError: Answer(413, "INPUT_REQUEST_TOO_LARGE"),
    UnauthorizedError: Answer(401, "AUTH_INVALID_API_KEY", "authentication_error"),
    RequestError: Answer(400, "INPUT_INVALID"),
    InputError: Answer(400, "INPUT_INVALID"),
    OverloadedError: Answer(429, "RATE_CONCURRENCY_LIMIT_EXCEEDED", "rate_limit_error"),
    DeadlineError: Answer(504, "SERVICE_TIMEOUT", "server_error"),
    TowerUnavailableError: Answer(503, "SERVICE_UNAVAILABLE", "server_error"),
    ServiceError: Answer(500, "INTERNAL_ERROR", "server_error"),
}
INTERNAL = Answer(500, "INTERNAL_ERROR", "server_error")


def answer_to(error: BaseException) -> tuple[Answer, str]:
    """Return how to answer an error, and the message to show.

    An error that is not ours is logged, and its text kept from the client.
    """
    for kind in type(error).__mro__:
        if kind in TABLE:
            return TABLE[kind], str(error)
    logger.error("unexpected error", exc_info=error)
    return INTERNAL, "internal error; the reason is in the server's log"


def body_of(code: str, kind: str, message: str, request_id: str) -> dict[str, object]:
    """Return the JSON body of an error."""
    return {
        "detail": message,
        "code": code,
        "request_id": request_id,
        "error": {"message": message, "type": kind, "param": None, "code": code},
    }
