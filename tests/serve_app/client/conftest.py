"""The model that a client's answers are held against, and a server of answers told ahead."""

from types import SimpleNamespace

import httpx
import pytest

from deployments.model import ClipModel
from serve_app.client import Client, retries


@pytest.fixture(scope="module")
def model() -> ClipModel:
    return ClipModel.load()


@pytest.fixture(params=["HTTP", "handle"])
def client(service, request):
    with Client(service.url if request.param == "HTTP" else service.handle) as client:
        yield client


def replies(*answers: httpx.Response | Exception):
    """A transport that gives these answers in turn, and the list of requests that it got."""
    left, seen = list(answers), []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        reply = left.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    return httpx.MockTransport(answer), seen


@pytest.fixture
def slept(monkeypatch) -> list[float]:
    """The waits of the client, which do not take place."""
    waits: list[float] = []
    monkeypatch.setattr(retries, "time", SimpleNamespace(sleep=waits.append))
    return waits
