"""The playground beside a small stand-in of the API.

The stand-in parses, embeds and renders with the product's own code, in one process without Ray.
"""

import asyncio
import base64
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from deployments.config import AppConfig
from deployments.errors import MissingKeyError
from deployments.messages import Embeddings, TextItem, Timings, Usage
from deployments.model import ClipModel
from deployments.model.errors import ImageError
from deployments.model.output import finish
from deployments.routing.admission import Budget
from deployments.routing.classification import Labels, classified
from serve_app import gallery
from serve_app.api import rendering
from serve_app.api.body import read_body
from serve_app.api.classification import answer_of
from serve_app.api.exchange import Clock, json_response, on_error
from serve_app.api.request import (
    ClassificationRequest,
    EmbeddingRequest,
    ItemsRequest,
    parse_as,
)
from serve_app.api.served import Served, models_of
from serve_app.listening import LOOPBACK, free_port
from serve_app.playground import routes as playground

R = TypeVar("R", bound=ItemsRequest)
PREFIX = "/clip"
SLOW = b"slow"  # requests with this word take a while
SLOW_S = 1.0
HEADERS = {"x-request-id": "request-of-the-test", "x-embedding-replicas": "text:a1, vision:b2"}


@dataclass
class StandIn:
    """The page and the API, with what the API was asked."""

    model: ClipModel
    served: Served
    key: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    rows: dict[Any, Any] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def app(self) -> Starlette:
        """The routes below a prefix, as Ray Serve mounts them."""
        api = [
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/v1/classify", self.classify, methods=["POST"]),
            Route("/v1/models", self.models),
        ]
        return Starlette(
            routes=[Mount(PREFIX, routes=[*playground.routes(), *api])],
            exception_handlers={HTTPException: on_error},
        )

    async def models(self, request: Request) -> Response:
        try:
            self.check_key(request)
        except MissingKeyError as error:
            return await on_error(request, error)
        return json_response(models_of(self.served, {"text": "t1", "vision": "v1"}))

    async def read(self, request: Request, shape: type[R]) -> R:
        self.check_key(request)
        with Budget("bytes", 100_000_000).hold("interactive") as hold:
            body = await read_body(request, self.served.config.router, hold)
        asked = parse_as(shape, body, self.served)
        self.bodies.append(json.loads(body))
        if SLOW in body:
            await asyncio.sleep(SLOW_S)
        return asked

    async def classify(self, request: Request) -> Response:
        try:
            asked = await self.read(request, ClassificationRequest)
            labels = Labels.read(asked.labels, 512)
            items = [*asked.items, *map(TextItem, labels.texts)]
            whole = EmbeddingRequest.model_construct(items=items, dimensions=None)
            answer = await asyncio.to_thread(self.embed, whole)
        except Exception as error:  # noqa: BLE001 - as the ingress does
            return await on_error(request, error)
        scale = math.exp(self.model.logit_scale) if asked.logit_scale else 1.0
        return json_response(answer_of(classified(answer, labels, scale), self.served))

    async def embeddings(self, request: Request) -> Response:
        clock = Clock()
        try:
            asked = await self.read(request, EmbeddingRequest)
            answer = await asyncio.to_thread(self.embed, asked)
        except Exception as error:  # noqa: BLE001 - as the ingress does
            return await on_error(request, error)
        form = rendering.Form(asked.encodings, self.served.names[0], 1)
        headers = HEADERS | {"server-timing": clock.header(answer.timings)}
        content = rendering.render(answer, form)
        return Response(content, headers=headers, media_type=rendering.JSON)

    def check_key(self, request: Request) -> None:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            raise MissingKeyError("send an API key as 'Authorization: Bearer KEY'")

    def embed(self, asked: EmbeddingRequest) -> Embeddings:
        rows = np.zeros((len(asked.items), self.model.width), np.float32)
        failures = {}
        for i, item in enumerate(asked.items):
            try:
                rows[i] = self.row(item, asked.task)
            except ImageError as error:
                if not asked.partial:
                    raise
                failures[i] = error
        done = finish(rows, asked.dimensions, asked.normalized)
        timings = Timings(tokenise_ms=0.4, towers_ms=9.0, queue_ms=2.0, device_ms=6.5)
        return Embeddings(done, Usage(7, len(rows)), failures, timings)

    def row(self, item: Any, task: str | None) -> Any:
        """The item's vector; computed once, since every new tab embeds the gallery."""
        with self.lock:
            if (item, task) not in self.rows:
                self.rows[item, task] = self.compute(item, task)
            return self.rows[item, task]

    def compute(self, item: Any, task: str | None) -> Any:
        if isinstance(item, TextItem):
            return self.model.encode_text([item.text], task)[0]
        return self.model.encode_image([base64.b64decode(item.source.partition(",")[2])])[0]

    @cached_property
    def images(self) -> Any:
        """The gallery's vectors, by calling the model."""
        with self.lock:
            return self.model.encode_image([x.path.read_bytes() for x in gallery.gallery_images()])

    def scores(self, text: str, width: int) -> tuple[list[str], Any]:
        """Return the gallery's names and their cosines with a text, by calling the model."""
        names = [image.english for image in gallery.gallery_images()]
        (query,) = self.model.encode_text([text], "retrieval.query", width)
        return names, finish(self.images, width, True) @ query

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Wait for something that the API is asked."""
        while not happened():
            time.sleep(0.01)


@contextmanager
def serving(app: Starlette) -> Iterator[str]:
    """Run an app on a free port; yield the address of the page."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, LOOPBACK, port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://{LOOPBACK}:{port}{PREFIX}/"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="session")
def stand_in() -> StandIn:
    """The page and the API on the shipped checkpoint."""
    model = ClipModel.load()
    return StandIn(model, Served(AppConfig(), model.architecture))


@pytest.fixture(scope="module")
def url(stand_in: StandIn) -> Iterator[str]:
    """Where the page is."""
    with serving(stand_in.app()) as address:
        yield address
