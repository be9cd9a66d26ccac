"""The HTTP routes: read, call the Router, render. Runs inside the Router's replicas."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from functools import wraps
from http import HTTPStatus
from math import ceil
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import orjson
from ray import serve
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deployments.queueing import Lane
from deployments.work import BodyTooLargeError, OverloadedError, UnauthorizedError
from serve_app import wire
from serve_app.errors import answer_to, body_of

if TYPE_CHECKING:
    from deployments.router import Router

JSON = "application/json"
LARGE_BYTES = 256 * 1024  # bodies from here on are parsed and rendered off the event loop
REQUEST_ID = "x-request-id"
PRIORITY = "x-priority"
TIMEOUT_S = "x-timeout-s"

Endpoint = Callable[[Request, "Router"], Awaitable[Response]]
P = ParamSpec("P")
T = TypeVar("T")


def http_app() -> Starlette:
    """Build the routes; called by Ray Serve in each Router replica."""
    return Starlette(
        routes=[
            Route("/v1/embeddings", _route(embeddings), methods=["POST"]),
            Route("/v1/models", _route(models), methods=["GET"]),
            Route("/health", _route(health), methods=["GET"]),
            Route("/ready", _route(ready), methods=["GET"]),
        ],
        exception_handlers={HTTPException: on_http_error},
    )


async def embeddings(request: Request, router: "Router") -> Response:
    """Answer `POST /v1/embeddings`."""
    _authorise(request, router)
    body = await _read_body(request, router.config.router.max_body_bytes)
    model = router.config.model
    asked = await _call(len(body), wire.parse, body, model)
    answer = await router.embed(
        asked.items,
        asked.task,
        asked.dimensions,
        asked.normalized,
        asked.truncate,
        asked.lane or _lane(request),
        asked.timeout_s or _timeout_s(request),
    )
    size = answer.embeddings.nbytes
    content = await _call(size, wire.render, answer, asked.encoding, model.served_name)
    return Response(content, media_type=JSON)


async def models(request: Request, router: "Router") -> Response:
    """Answer `GET /v1/models`."""
    _authorise(request, router)
    architecture = router.architecture
    content = wire.models(
        router.config.model, architecture.width, architecture.matryoshka_dimensions
    )
    return Response(content, media_type=JSON)


async def health(_request: Request, _router: "Router") -> Response:
    """Answer `GET /health`: this process is alive."""
    return Response(b'{"status":"alive"}', media_type=JSON)


async def ready(_request: Request, router: "Router") -> Response:
    """Answer `GET /ready`: 200 once every tower answers, 503 until then."""
    if await router.ready():
        return Response(b'{"status":"ready"}', media_type=JSON)
    return Response(b'{"status":"not ready"}', HTTPStatus.SERVICE_UNAVAILABLE, media_type=JSON)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer an unknown path or method in the shape of every other error."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    message = f"{error.detail}: {request.method} {path}; see POST /v1/embeddings"
    code = HTTPStatus(error.status_code).name
    body = body_of(code, "invalid_request_error", message, _request_id(request))
    return Response(orjson.dumps(body), error.status_code, error.headers, JSON)


def _route(endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    """Give an endpoint the Router it runs in, and turn its errors into answers."""

    @wraps(endpoint)
    async def answer(request: Request) -> Response:
        try:
            router: Router = serve.get_replica_context().servable_object  # type: ignore[assignment]
            return await endpoint(request, router)
        except Exception as error:  # noqa: BLE001 - the one place where errors become answers
            how, message = answer_to(error)
            body = body_of(how.code, how.kind, message, _request_id(request))
            response = Response(orjson.dumps(body), how.status, media_type=JSON)
            if isinstance(error, UnauthorizedError):
                response.headers["www-authenticate"] = "Bearer"
            if isinstance(error, OverloadedError):
                response.headers["retry-after"] = str(ceil(error.retry_after_s))
                response.headers["retry-after-ms"] = str(ceil(1000 * error.retry_after_s))
        return response

    return answer


def _request_id(request: Request) -> str:
    """Return the request's id: the client's or Ray Serve's, which also puts it in the answer."""
    return request.headers.get(REQUEST_ID, "")


def _authorise(request: Request, router: "Router") -> None:
    """Raise UnauthorizedError unless the request carries a known key, where keys are on."""
    keys = router.config.api_keys
    if not keys:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not given:
        raise UnauthorizedError("send an API key as 'Authorization: Bearer KEY'")
    # Every key is compared, so that the time says nothing about which one was close.
    matches = [
        hmac.compare_digest(given.strip().encode(), key.get_secret_value().encode()) for key in keys
    ]
    if not any(matches):
        raise UnauthorizedError("this API key is not known")


def _lane(request: Request) -> Lane:
    """Return the lane that the header asks for.

    Raises:
        OptionError: not a lane.
    """
    return wire.lane(request.headers.get(PRIORITY)) or "interactive"


def _timeout_s(request: Request) -> float | None:
    """Return the seconds that the header gives, None without one.

    Raises:
        OptionError: not a positive number.
    """
    return wire.timeout_s(request.headers.get(TIMEOUT_S))


async def _read_body(request: Request, max_bytes: int) -> bytes:
    """Read the body, refusing a larger one before it is in memory."""
    message = f"the body is larger than {max_bytes:,} bytes; send fewer or smaller items"
    if int(request.headers.get("content-length") or 0) > max_bytes:
        raise BodyTooLargeError(message)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > max_bytes:
            raise BodyTooLargeError(message)
        parts.append(part)
    return b"".join(parts)


async def _call(size_bytes: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function, in a thread if the data is large."""
    if size_bytes <= LARGE_BYTES:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)
