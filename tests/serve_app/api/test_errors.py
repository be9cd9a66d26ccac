"""How exceptions look on the wire, and what is kept out of answers and logs."""

import logging

import pytest

from deployments import errors
from deployments.model import errors as model_errors
from deployments.model.errors import EmbeddingError, InputError
from serve_app.api.errors import FieldError, answer_to, fault_of, headers_of

PRIVATE = "the patient's own words"


def kinds(module) -> list[type[EmbeddingError]]:
    return [x for x in vars(module).values() if isinstance(x, type) and issubclass(x, Exception)]


KINDS = dict.fromkeys([*kinds(errors), *kinds(model_errors)])  # each once, in this order


@pytest.mark.parametrize("kind", KINDS, ids=lambda x: x.__name__)
def test_every_error_has_a_body_that_both_dialects_read(kind):
    """A string detail with code and id, and an object of four keys; the caller's faults are 4xx."""
    error = kind("why", 2.5) if issubclass(kind, errors.OverloadedError) else kind("why")
    status, body = fault_of(error, "id-1")
    assert body["request_id"] == "id-1"
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["message"] == body["detail"]
    assert body["error"]["code"] == body["code"]
    if issubclass(kind, InputError):
        assert 400 <= status < 500
        assert body["detail"] == "why"
    else:
        assert status in (429, 500, 503, 504)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.MissingKeyError("x"), 401, "AUTH_MISSING_API_KEY"),
        (errors.KeyFormatError("x"), 401, "AUTH_INVALID_FORMAT"),
        (errors.UnauthorizedError("x"), 401, "AUTH_INVALID_API_KEY"),
        (errors.UnknownModelError("x"), 400, "INPUT_MODEL_NOT_FOUND"),
        (model_errors.TextTooLongError("x"), 400, "INPUT_TOKEN_LIMIT_EXCEEDED"),
        (FieldError("x"), 422, "INPUT_OPTION_INVALID"),
        (errors.OverloadedError("x", 1), 429, "RATE_CONCURRENCY_LIMIT_EXCEEDED"),
        (errors.RateLimitError("x", 1), 429, "RATE_REQUEST_LIMIT_EXCEEDED"),
        (errors.TowerUnavailableError("x"), 503, "SERVICE_UNAVAILABLE"),
        (errors.DeadlineError("x"), 504, "SERVICE_TIMEOUT"),
        (errors.ServiceError("x"), 500, "INTERNAL_ERROR"),
    ],
)
def test_codes_are_those_of_jinas_api(error, status, code):
    """Status and code as Jina documents them."""
    how, _ = answer_to(error)
    assert (how.status, how.code) == (status, code)


def test_an_unexpected_error_is_logged_by_type_and_place_only(caplog):
    """What a client sent may stand in an exception's text: it reaches neither log nor answer."""

    def fails() -> None:
        raise KeyError(PRIVATE)

    with caplog.at_level(logging.DEBUG):
        try:
            fails()
        except KeyError as error:
            status, body = fault_of(error, "")
    assert status == 500
    assert PRIVATE not in str(body)
    assert PRIVATE not in caplog.text
    assert "KeyError" in caplog.text
    assert "in fails" in caplog.text


def test_headers_say_how_to_authenticate_and_when_to_come_back():
    """401 names the scheme; 429 gives whole seconds, rounded up, and milliseconds."""
    assert headers_of(errors.MissingKeyError("x")) == {"www-authenticate": "Bearer"}
    waits = headers_of(errors.OverloadedError("x", 1.2))
    assert waits == {"retry-after": "2", "retry-after-ms": "1200"}
    waits = headers_of(errors.TowerUnavailableError("x"))
    assert waits == {"retry-after": "1", "retry-after-ms": "1000"}
    assert headers_of(InputError("x")) == {}
