"""The HTTP routes: parse, call the Router, render. Runs inside the Router's replicas."""

from collections.abc import Awaitable, Callable
from functools import wraps
from http import HTTPStatus
from typing import TYPE_CHECKING

import orjson
from ray import serve
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from deployments.messages import Lane
from serve_app.api import fields, openapi, rendering
from serve_app.api import request as wire
from serve_app.api.docs import page
from serve_app.api.exchange import Clock, call, json_response, on_error, read_body
from serve_app.api.keys import ApiKey, KeyRing
from serve_app.api.request import EmbeddingRequest
from serve_app.api.values import Served
from serve_app.playground import routes as playground

if TYPE_CHECKING:
    from deployments.router import Router

PRIORITY = "x-priority"
TIMEOUT_S = "x-timeout-s"
FINGERPRINT = "x-embedding-fingerprint"
USAGE = "x-embedding-usage"
REPLICAS = "x-embedding-replicas"
SERVER_TIMING = "server-timing"

Endpoint = Callable[[Request, "Router"], Awaitable[Response]]


def http_app(with_playground: bool = True) -> Starlette:
    """Build the routes, with or without the page at `/`."""
    return Starlette(
        routes=[
            *(playground.routes() if with_playground else ()),
            Route("/v1/embeddings", _route(embeddings), methods=["POST"]),
            Route("/v1/models", _route(models), methods=["GET"]),
            Route("/health", _route(health), methods=["GET"]),
            Route("/ready", _route(ready), methods=["GET"]),
            # What SageMaker asks of a container.
            Route("/ping", _route(ready), methods=["GET"]),
            Route("/invocations", _route(embeddings), methods=["POST"]),
            Route("/openapi.json", _route(document), methods=["GET"]),
            Route("/docs", _route(docs), methods=["GET"]),
        ],
        exception_handlers={HTTPException: on_error, Exception: on_error},
    )


async def embeddings(request: Request, router: "Router") -> Response:
    """Answer `POST /v1/embeddings`."""
    with router.metrics.busy():
        return await _embeddings(request, router)


async def _embeddings(request: Request, router: "Router") -> Response:
    served, clock = _served(router), Clock()
    with router.metrics.refusals():
        key = _key(request, router)
        body = await read_body(request, router.config.router.max_body_bytes)
        with clock.part("parse"):
            asked = await call(len(body), wire.parse, body, served)
    with _keys(request, router).admit(key, len(asked.items)):
        answer = await router.embed(
            asked.items,
            asked.task,
            asked.dimensions,
            asked.normalized,
            asked.truncate,
            _lane(request, served, asked, key),
            asked.timeout_s or _header(request, fields.TIMEOUT_S, TIMEOUT_S, served),
            asked.partial,
            request.headers.get(FINGERPRINT),
        )
    media_type = rendering.negotiate(request.headers.get("accept", ""))
    names = served.names[0], served.image_price_tokens
    form = rendering.Form(asked.encodings, *names)
    with clock.part("render"):
        size = answer.embeddings.nbytes
        content = await call(size, rendering.render, answer, form, media_type)
    router.metrics.stages(clock.parts_ms)
    headers = {
        FINGERPRINT: answer.fingerprint,
        SERVER_TIMING: clock.header(answer.timings),
        REPLICAS: ", ".join(answer.replicas),
        USAGE: orjson.dumps(rendering.usage(answer, form)).decode(),
    }
    return Response(content, headers=headers, media_type=media_type)


async def models(request: Request, router: "Router") -> Response:
    """Answer `GET /v1/models`."""
    _key(request, router)
    return json_response(wire.models(_served(router), await router.fingerprints()))


async def health(_request: Request, _router: "Router") -> Response:
    """Answer `GET /health`: this process is alive."""
    return json_response({"status": "alive"})


async def ready(_request: Request, router: "Router") -> Response:
    """Answer `GET /ready`: 200 once every tower answers, 503 until then."""
    if await router.ready():
        return json_response({"status": "ready"})
    return json_response({"status": "not ready"}, HTTPStatus.SERVICE_UNAVAILABLE)


async def document(_request: Request, router: "Router") -> Response:
    """Answer `GET /openapi.json`."""
    return json_response(openapi.document(_served(router)))


async def docs(_request: Request, router: "Router") -> Response:
    """Answer `GET /docs`: the same document for people."""
    return HTMLResponse(page(openapi.document(_served(router))))


def _route(endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    """Give an endpoint the Router it runs in, and turn its errors into answers."""

    @wraps(endpoint)
    async def answer(request: Request) -> Response:
        try:
            router: Router = serve.get_replica_context().servable_object  # type: ignore[assignment]
            return await endpoint(request, router)
        except Exception as error:  # noqa: BLE001 - the one place where errors become answers
            return await on_error(request, error)

    return answer


def _served(router: "Router") -> Served:
    return Served(router.config, router.architecture)


def _keys(request: Request, router: "Router") -> KeyRing:
    """Return the keys of this Router, read at the first request."""
    state = request.app.state
    if not hasattr(state, "keys"):
        state.keys = KeyRing(router.config)
    keys: KeyRing = state.keys
    return keys


def _key(request: Request, router: "Router") -> ApiKey:
    """Return the key that the request carries.

    Raises:
        UnauthorizedError: none or an unknown one, where keys are on.
    """
    return _keys(request, router).find(request.headers.get("authorization", ""))


def _lane(request: Request, served: Served, asked: EmbeddingRequest, key: ApiKey) -> Lane:
    """Return the lane that the request asks for, at most its key's."""
    wanted = asked.lane or _header(request, fields.LANE, PRIORITY, served)
    return "bulk" if "bulk" in (key.lane, wanted) else "interactive"


def _header(
    request: Request, field: fields.Field[fields.T | None], name: str, served: Served
) -> fields.T | None:
    """Read a header as the field that means the same."""
    value = request.headers.get(name)
    return None if value is None else field.read_value(name, value, served)
