"""One HTTP exchange: its id, its clock, and its errors as answers."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from http import HTTPStatus
from typing import ParamSpec, TypeVar

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from deployments.messages import Timings
from serve_app.api.errors import INVALID, Answer, fault, fault_of, headers_of
from serve_app.api.rendering import JSON

logger = logging.getLogger("ray.serve")

LARGE_BYTES = 256 * 1024  # bodies from here on are parsed and rendered off the event loop
REQUEST_ID = "x-request-id"

P = ParamSpec("P")
T = TypeVar("T")


class Clock:
    """Where the time of an exchange goes, for the header Server-Timing."""

    def __init__(self) -> None:
        self.parts_ms: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure the block under a name."""
        start_s = time.perf_counter()
        try:
            yield
        finally:
            self.parts_ms[name] = 1000 * (time.perf_counter() - start_s)

    def header(self, timings: Timings) -> str:
        """Return the header: this clock's parts and the Router's, in milliseconds."""
        router = {name.removesuffix("_ms"): value for name, value in asdict(timings).items()}
        parts = self.parts_ms | {name: value for name, value in router.items() if value}
        return ", ".join(f"{name};dur={value:.2f}" for name, value in parts.items())


def request_id(request: Request) -> str:
    """Return the request's id: the client's or Ray Serve's, which also puts it in the answer."""
    return request.headers.get(REQUEST_ID, "")


async def call(size_bytes: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function, in a thread if the data is large."""
    if size_bytes <= LARGE_BYTES:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)


def json_response(
    content: Mapping[str, object], status: int = HTTPStatus.OK, headers: Mapping[str, str] = {}
) -> Response:
    """Return an answer in JSON."""
    return Response(orjson.dumps(content), status, headers, JSON)


async def on_error(request: Request, error: Exception) -> Response:
    """Answer an error in the form that every client reads."""
    if isinstance(error, HTTPException):  # an unknown path or method
        path = request.url.path
        message = (
            f"{error.detail}: {request.method} {path}; embed by POST /v1/embeddings, see /docs"
        )
        how = Answer(error.status_code, HTTPStatus(error.status_code).name, INVALID)
        body = fault(how, message, request_id(request))
        return json_response(body, error.status_code, error.headers or {})
    status, body = fault_of(error, request_id(request))
    note(request, status, body["code"])
    return json_response(body, status, headers_of(error))


def note(request: Request, status: int, code: str) -> None:
    """Log that a request was not answered; the messages of errors may quote it, so not them.

    Ray Serve adds the request's id; with `encoding: JSON` all of these are fields of their own.
    """
    level = logging.WARNING if status >= HTTPStatus.INTERNAL_SERVER_ERROR else logging.INFO
    if status == HTTPStatus.TOO_MANY_REQUESTS:  # an overloaded server has no time to write
        level = logging.DEBUG
    fields = {"method": request.method, "path": request.url.path, "status": status, "code": code}
    logger.log(level, "refused or failed: %d %s", status, code, extra=fields)
