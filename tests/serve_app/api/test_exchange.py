"""What is logged about a request that is not answered with rows."""

import logging

import pytest
from starlette.requests import Request

from deployments.errors import OverloadedError, TowerUnavailableError
from serve_app.api import exchange
from serve_app.api.errors import FieldError


@pytest.fixture
def logged(monkeypatch):
    """The records that the exchange writes."""
    records = []
    logger = logging.Logger("of the test", logging.DEBUG)
    handler = logging.Handler()
    handler.emit = records.append
    logger.addHandler(handler)
    monkeypatch.setattr(exchange, "logger", logger)
    return records


def request() -> Request:
    headers = [(b"x-request-id", b"the-id")]
    scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": headers}
    return Request(scope | {"query_string": b"", "server": ("localhost", 80), "scheme": "http"})


async def test_a_refusal_is_logged_by_its_code_without_its_message(logged):
    """The message quotes what was sent; the log has the code, the path and the status."""
    error = FieldError("'a secret' is not a number", "dimensions", "int_type", "a secret")
    answer = await exchange.on_error(request(), error)
    (record,) = logged
    assert b"a secret" in answer.body
    assert "secret" not in str(record.__dict__)
    assert (record.status, record.code) == (422, "INPUT_OPTION_INVALID")
    assert (record.method, record.path) == ("POST", "/v1/embeddings")
    assert record.levelno == logging.INFO


@pytest.mark.parametrize(
    ("error", "level"),
    [(TowerUnavailableError("gone"), "WARNING"), (OverloadedError("full", 1.0), "DEBUG")],
)
async def test_failures_are_louder_than_refusals_and_overload_is_quiet(logged, error, level):
    """What the operator has to look at is a warning; a line for each 429 would add to the load."""
    await exchange.on_error(request(), error)
    (record,) = logged
    assert record.levelname == level
