"""One Ray, one running service for the whole test session."""

import http.server
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.config import AppConfig, RouterConfig, TextTowerConfig
from deployments.image_config import ImageConfig
from deployments.model.architecture import Architecture
from deployments.model.weights.source import DEMO
from serve_app.api.served import Served
from serve_app.gallery import FOLDER
from serve_app.listening import LOOPBACK, Ingress, free_port, prepare_environment
from serve_app.server import running

IMAGE_HOST = "127.0.0.2"  # allowed by the test's configuration; every other private address is not


@dataclass
class Service:
    """A running service and how to reach it."""

    url: str
    config: AppConfig
    client: httpx.Client
    image_url: Callable[[str], str]
    post: Callable[..., httpx.Response] = field(init=False)

    def __post_init__(self) -> None:
        self.post = lambda body: self.client.post("/v1/embeddings", json=body)

    @property
    def handle(self) -> Any:
        """The Python handle of the running application."""
        from ray import serve

        return serve.get_app_handle("embeddings")

    def embed(self, items: list[Any], **options: Any) -> list[Any]:
        """Return the embeddings of a request that must succeed."""
        answer = self.post({"model": "jina-clip-v2", "input": items, **options})
        assert answer.status_code == 200, answer.text
        return [row["embedding"] for row in answer.json()["data"]]


@pytest.fixture(scope="session")
def image_server() -> Iterator[str]:
    """The gallery over HTTP, on an address that only the test's configuration allows."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(FOLDER))

        def log_message(self, *_: object) -> None:
            """Keep the test output clean."""

    server = http.server.ThreadingHTTPServer((IMAGE_HOST, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://{IMAGE_HOST}:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="session")
def service(image_server: str) -> Iterator[Service]:
    """The whole application on the shipped checkpoint, over Ray Serve's stock proxy."""
    port = int(image_server.rsplit(":", 1)[1])
    config = AppConfig(
        text=TextTowerConfig(num_cpus=0.5),
        router=RouterConfig(num_cpus=0.5),
        images=ImageConfig(allow_networks=(f"{IMAGE_HOST}/32",), ports=(80, 443, port)),
    )
    ingress = Ingress("stock", LOOPBACK, free_port())
    prepare_environment(ingress)
    with running(config, ingress) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield Service(url, config, client, lambda name: f"{image_server}/{name}")


@pytest.fixture(autouse=True)
def settings_of_one_test() -> Iterator[None]:
    """Take back what a test sets for Ray Serve: a range of one port is no good for two Routers."""
    before = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    yield
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def served() -> Served:
    """What requests are read against, with the default configuration and the shipped checkpoint."""
    return Served(AppConfig(), Architecture.read(DEMO))


@pytest.fixture(scope="session")
def bear() -> bytes:
    """An encoded picture."""
    return Path(FOLDER / "bear.png").read_bytes()
