"""The HTTP routes: parse, call the Router, render. Runs inside the Router's replicas."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

import orjson
from ray import serve
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deployments.config import AppConfig
from deployments.messages import Classification, Embeddings, Lane
from deployments.routing.admission import Hold
from serve_app.api import classification, docs, openapi, rendering
from serve_app.api.body import read_body
from serve_app.api.exchange import REQUEST_ID, Clock, call, json_response, on_error
from serve_app.api.keys import ApiKey, KeyRing
from serve_app.api.leases import ask_actor
from serve_app.api.request import ClassificationRequest, EmbeddingRequest, ItemsRequest, parse_as
from serve_app.api.served import Served, models_of
from serve_app.batches.asking import CALLER
from serve_app.batches.routes import Owned
from serve_app.batches.service import Batches
from serve_app.playground import routes as playground

if TYPE_CHECKING:
    from deployments.router import Router

FINGERPRINT = "x-embedding-fingerprint"
USAGE = "x-embedding-usage"
REPLICAS = "x-embedding-replicas"
SERVER_TIMING = "server-timing"
# What scripts of other origins may read, beside the body.
EXPOSED = (FINGERPRINT, USAGE, REPLICAS, SERVER_TIMING, REQUEST_ID, "retry-after", "retry-after-ms")

EMBEDDINGS = (
    "/v1/embeddings",
    "/embeddings",  # a base URL without /v1
    "/openai/deployments/{name}/embeddings",  # Azure's clients
    "/invocations",  # SageMaker
    "/post",  # clip-as-service
)

CLASSIFY = ("/v1/classify", "/classify")

R = TypeVar("R", bound=ItemsRequest)
Endpoint = Callable[[Request, "Router"], Awaitable[Response]]
Answer = Callable[[Request, "Router", ApiKey, R, Clock], Awaitable[Response]]


def own_router() -> "Router":
    """Return the Router in whose replica this code runs."""
    return serve.get_replica_context().servable_object  # type: ignore[return-value]


def http_app(config: AppConfig, router_of: Callable[[], "Router"] = own_router) -> Starlette:
    """Build the routes, with or without the page at `/`, for pages of the origins allowed.

    Raises:
        ServiceError: the API keys cannot be read here, or the folder of batches not be written; a
            Router without them does not start.
    """

    def route(path: str, endpoint: Endpoint, *methods: str) -> list[Route]:
        """Give an endpoint the Router it runs in, and turn its errors into answers."""

        async def answer(request: Request) -> Response:
            try:
                return await endpoint(request, router_of())
            except Exception as error:  # noqa: BLE001 - the one place where errors become answers
                return await on_error(request, error)

        # A slash at the end is answered too: a redirect would lose the body, or TLS.
        return [Route(x, answer, methods=methods or ["GET"]) for x in (path, f"{path}/")]

    origins = config.cors.allow_origins
    batches = Batches(config, lambda: router_of().interactive)
    app = Starlette(
        routes=[
            *(playground.routes() if config.router.playground else ()),
            *(x for path in EMBEDDINGS for x in route(path, embeddings, "POST")),
            *(x for path in CLASSIFY for x in route(path, classify, "POST")),
            *(
                x
                for path, answer, methods in batches.routes.table()
                for x in route(path, owned(answer), *methods)
            ),
            *route("/v1/models", models),
            *(x for path, state in STATES.items() for x in route(path, state, "GET", "OPTIONS")),
            *route("/openapi.json", document),
            *docs.routes(),
        ],
        exception_handlers={HTTPException: on_error, Exception: on_error},
        middleware=[_cors(origins)] if origins else [],
        lifespan=batches.working,
    )
    app.router.redirect_slashes = False
    alone = config.router.most_replicas == 1
    ask = None if alone else ask_actor()

    def on_alone() -> None:
        router_of().metrics.unleased()

    app.state.keys = KeyRing(config, ask=ask, on_alone=on_alone)
    return app


def _cors(origins: Sequence[str]) -> Middleware:
    """Let pages of these origins call; without it browsers keep the answers from them."""
    return Middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=EXPOSED,
    )


def owned(answer: Owned) -> Endpoint:
    """Return an endpoint of what belongs to the caller's key."""

    async def endpoint(request: Request, router: "Router") -> Response:
        with router.metrics.refusals():
            return await answer(request, router, _key(request).sha256)

    return endpoint


def taking(shape: type[R], answer: "Answer[R]") -> Endpoint:
    """Return an endpoint that knows its caller, reads a body, and has it answered."""

    async def endpoint(request: Request, router: "Router") -> Response:
        with router.metrics.refusals():
            key = _key(request)
        clock = Clock()
        with router.bytes.hold(key.lane) as hold:  # of the body, until it is answered
            with router.metrics.refusals():
                asked = await _asked(request, router, shape, hold, clock)
                hold.move(_lane(key, asked))
            with router.metrics.busy():  # not before: at the end no body is waited for
                return await answer(request, router, key, asked, clock)

    return endpoint


async def _asked(request: Request, router: "Router", shape: type[R], hold: Hold, clock: Clock) -> R:
    """Read and parse the body, which then stays as its items alone."""
    body = await read_body(request, router.config.router, hold)
    with clock.part("parse"):
        return await call(len(body), parse_as, shape, body, _served(router), request.headers)


@asynccontextmanager
async def _admitted(
    request: Request, router: "Router", key: ApiKey, asked: ItemsRequest
) -> AsyncIterator[None]:
    """Hold a request to its key's limits for the length of the block."""
    async with AsyncExitStack() as held:
        with router.metrics.refusals():
            await held.enter_async_context(_keys(request).admit(key, len(asked.items)))
        yield


def _lane(key: ApiKey, asked: ItemsRequest) -> Lane:
    """Return the lane of a request; a key may keep its caller out of the interactive one."""
    return "bulk" if "bulk" in (key.lane, asked.lane) else "interactive"


async def _embeddings(
    request: Request, router: "Router", key: ApiKey, asked: EmbeddingRequest, clock: Clock
) -> Response:
    """Answer `POST /v1/embeddings`."""
    served = _served(router)
    with router.metrics.refusals():
        form = rendering.Form(
            asked.encodings,
            served.names[0],
            served.image_price_tokens,
            _body_type(request),
        )
    async with _admitted(request, router, key, asked):
        answer = await router.embed(
            asked.items,
            asked.task,
            asked.dimensions,
            asked.normalized,
            asked.truncate,
            _lane(key, asked),
            asked.timeout_s,
            asked.partial,
            request.headers.get(FINGERPRINT),
        )
    with clock.part("render"):
        content = await call(answer.embeddings.nbytes, rendering.render, answer, form)
    return _response(router, content, answer, clock, form.media_type)


async def _classification(
    request: Request, router: "Router", key: ApiKey, asked: ClassificationRequest, clock: Clock
) -> Response:
    """Answer `POST /v1/classify`."""
    with router.metrics.refusals():
        media_type = _body_type(request)
    async with _admitted(request, router, key, asked):
        answer = await router.classify(
            asked.items,
            asked.labels,  # type: ignore[arg-type]  # the Router reads them
            asked.logit_scale,
            asked.partial,
            truncate=asked.truncate,
            lane=_lane(key, asked),
            timeout_s=asked.timeout_s,
            fingerprint=request.headers.get(FINGERPRINT),
        )
    with clock.part("render"):
        size, asked_for = classification.size_bytes(answer), (answer, _served(router), media_type)
        content = await call(size, classification.render, *asked_for)
    return _response(router, content, answer, clock, media_type)


def _response(
    router: "Router",
    content: bytes,
    answer: Embeddings | Classification,
    clock: Clock,
    media_type: str,
) -> Response:
    router.metrics.stages(clock.parts_ms)
    cost = rendering.usage(answer.usage, _served(router).image_price_tokens)
    headers = {
        FINGERPRINT: answer.fingerprint,
        SERVER_TIMING: clock.header(answer.timings),
        REPLICAS: ", ".join(answer.replicas),
        USAGE: orjson.dumps(cost).decode(),
    }
    return Response(content, headers=headers, media_type=media_type)


embeddings = taking(EmbeddingRequest, _embeddings)
classify = taking(ClassificationRequest, _classification)


async def models(request: Request, router: "Router") -> Response:
    """Answer `GET /v1/models`."""
    _key(request)
    return json_response(models_of(_served(router), await router.fingerprints()))


async def health(_request: Request, _router: "Router") -> Response:
    """Answer `GET /health`: this process is alive."""
    return json_response({"status": "alive"})


async def ready(_request: Request, router: "Router") -> Response:
    """Answer `GET /ready`: 200 once every tower answers, 503 until then."""
    if await router.ready():
        return json_response({"status": "ready"})
    return json_response({"status": "not ready"}, HTTPStatus.SERVICE_UNAVAILABLE)


# HAProxy probes with OPTIONS where it is told nothing else. SageMaker asks for /ping.
STATES: Mapping[str, Endpoint] = {"/health": health, "/ready": ready, "/ping": ready}


async def document(_request: Request, router: "Router") -> Response:
    """Answer `GET /openapi.json`."""
    return json_response(openapi.document(_served(router)))


def _body_type(request: Request) -> str:
    return rendering.negotiate(request.headers.get("accept", ""))


def _served(router: "Router") -> Served:
    return Served(router.config, router.architecture)


def _keys(request: Request) -> KeyRing:
    keys: KeyRing = request.app.state.keys
    return keys


def _key(request: Request) -> ApiKey:
    """Return the key that the request carries.

    Raises:
        UnauthorizedError: none or an unknown one, where keys are on.
    """
    inside: ApiKey | None = request.scope.get(CALLER)  # HTTP cannot set it
    return inside or _keys(request).find(
        request.headers.get("authorization", ""), request.headers.get("api-key", "")
    )
