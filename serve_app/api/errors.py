"""How an exception looks on the wire: one table from its type to status, code and body.

One body serves every client: `detail` is a string (Jina's form), and `error` is OpenAI's object.
"""

import logging
import traceback
from dataclasses import dataclass
from math import ceil

from starlette.requests import ClientDisconnect

from deployments import errors
from deployments.model.errors import ImageError, InputError, OptionError, TextTooLongError
from serve_app.api import codings
from serve_app.api.answers import Fault, FieldFault

logger = logging.getLogger("ray.serve")

# Types that OpenAI's clients read.
INVALID = "invalid_request_error"
AUTHENTICATION = "authentication_error"
RATE_LIMIT = "rate_limit_error"
SERVER = "server_error"


class FieldError(OptionError):
    """A field of the request whose value is refused.

    Args:
        message: what was wrong with it.
        field: the name that it was sent under.
        kind: which rule it breaks, in the words of pydantic's error types.
        value: what was sent, shortened.
    """

    def __init__(
        self,
        message: str,
        field: str = "",
        kind: str = "",
        value: bool | int | float | str | None = None,
    ) -> None:
        super().__init__(message, field, kind, value)
        self.message = message
        self.field = field
        self.kind = kind
        self.value = value

    def __str__(self) -> str:
        """Return the message alone."""
        return self.message


@dataclass(frozen=True)
class Answer:
    """Status and code of an error, and the type that OpenAI's clients read."""

    status: int
    code: str
    kind: str = INVALID


# The first entry along the exception's class hierarchy wins.
TABLE: dict[type[BaseException], Answer] = {
    TextTooLongError: Answer(400, "INPUT_TOKEN_LIMIT_EXCEEDED"),
    errors.ImageSourceError: Answer(400, "INPUT_IMAGE_UNAVAILABLE"),
    ImageError: Answer(400, "INPUT_IMAGE_INVALID"),
    OptionError: Answer(422, "INPUT_OPTION_INVALID"),
    errors.UnknownModelError: Answer(400, "INPUT_MODEL_NOT_FOUND"),
    errors.NotFoundError: Answer(404, "NOT_FOUND"),
    errors.BodyTimeoutError: Answer(408, "REQUEST_TIMEOUT"),
    errors.BodyTooLargeError: Answer(413, "INPUT_BODY_TOO_LARGE"),
    errors.UnsupportedCodingError: Answer(415, "INPUT_CODING_UNSUPPORTED"),
    errors.RequestTooLargeError: Answer(413, "INPUT_REQUEST_TOO_LARGE"),
    errors.FingerprintError: Answer(409, "CONFLICT_FINGERPRINT"),
    errors.MissingKeyError: Answer(401, "AUTH_MISSING_API_KEY", AUTHENTICATION),
    errors.KeyFormatError: Answer(401, "AUTH_INVALID_FORMAT", AUTHENTICATION),
    errors.UnauthorizedError: Answer(401, "AUTH_INVALID_API_KEY", AUTHENTICATION),
    errors.RequestError: Answer(400, "INPUT_INVALID"),
    InputError: Answer(400, "INPUT_INVALID"),
    errors.RateLimitError: Answer(429, "RATE_REQUEST_LIMIT_EXCEEDED", RATE_LIMIT),
    errors.OverloadedError: Answer(429, "RATE_CONCURRENCY_LIMIT_EXCEEDED", RATE_LIMIT),
    errors.DeadlineError: Answer(504, "SERVICE_TIMEOUT", SERVER),
    errors.TowerUnavailableError: Answer(503, "SERVICE_UNAVAILABLE", SERVER),
    errors.ServiceError: Answer(500, "INTERNAL_ERROR", SERVER),
    ClientDisconnect: Answer(400, "REQUEST_ABORTED"),
}
INTERNAL = Answer(500, "INTERNAL_ERROR", SERVER)


def answer_to(error: BaseException) -> tuple[Answer, str]:
    """Return how to answer an error, and the message to show.

    An error that is not ours is logged by its type and place, and its text kept from the client.
    """
    for kind in type(error).__mro__:
        if kind in TABLE:
            return TABLE[kind], str(error)
    # Not its text either: that may quote what the client sent.
    place = "".join(traceback.format_tb(error.__traceback__))
    logger.error("unexpected %s\n%s", type(error).__name__, place)
    return INTERNAL, "internal error; its type and place are in the server's log"


def fault(how: Answer, message: str, request_id: str) -> Fault:
    """Return the body of an error."""
    return {
        "detail": message,
        "code": how.code,
        "request_id": request_id,
        "error": {"message": message, "type": how.kind, "param": None, "code": how.code},
    }


def fault_of(error: BaseException, request_id: str) -> tuple[int, Fault]:
    """Return an exception's status and body."""
    how, message = answer_to(error)
    body = fault(how, message, request_id)
    if isinstance(error, FieldError):
        refused: FieldFault = {
            "field": f"body -> {error.field}",
            "message": message,
            "type": error.kind,
            "input": error.value,
        }
        body["errors"] = [refused]
        body["error"]["param"] = error.field
    return how.status, body


def headers_of(error: BaseException) -> dict[str, str]:
    """Return the headers that go with an error: how to authenticate, when to come back."""
    if isinstance(error, errors.UnauthorizedError):
        return {"www-authenticate": "Bearer"}
    if isinstance(error, (errors.OverloadedError, errors.TowerUnavailableError)):
        return {
            "retry-after": str(ceil(error.retry_after_s)),
            "retry-after-ms": str(ceil(1000 * error.retry_after_s)),
        }
    if isinstance(error, errors.BodyTimeoutError):
        return {"connection": "close"}  # the rest of the body is not waited for
    if isinstance(error, errors.UnsupportedCodingError):
        return {"accept-encoding": ", ".join(codings.taken())}
    return {}
