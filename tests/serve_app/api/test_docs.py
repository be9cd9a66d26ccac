"""The page at `/docs`, over HTTP and in a real browser."""

import shutil
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from serve_app.api import docs, openapi
from serve_app.listening import LOOPBACK, free_port

PREFIX = "/clip"
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


@pytest.fixture(scope="module")
def bodies() -> list[bytes]:
    """What was sent to the API."""
    return []


@pytest.fixture(scope="module")
def url(served: Any, bodies: list[bytes]) -> Iterator[str]:
    """The page, its document and an API that answers anything, below a prefix."""

    async def document(_request: Request) -> Response:
        return JSONResponse(openapi.document(served))

    async def embeddings(request: Request) -> Response:
        bodies.append(await request.body())
        return JSONResponse({"answer": "of the test"})

    routes = [
        *docs.routes(),
        Route("/openapi.json", document),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
    ]
    app = Starlette(routes=[Mount(PREFIX, routes=routes)])
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, LOOPBACK, port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://{LOOPBACK}:{port}{PREFIX}/"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def tab() -> Iterator[Any]:
    """A tab of a real browser."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser.new_page(viewport={"width": 1280, "height": 900})
        browser.close()


def test_the_page_refers_to_its_own_server_only(url):
    """Its files have their types; the policy allows nothing inline and no other host."""
    page = httpx.get(f"{url}docs")
    assert page.status_code == 200
    assert "script-src 'self';" in page.headers["content-security-policy"]
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert "//" not in page.text.replace("</", "")
    for file in ("docs/start.js", "docs/files/swagger-ui-bundle.js", "docs/files/swagger-ui.css"):
        assert f'"{file}"' in page.text
        answer = httpx.get(url + file)
        assert answer.status_code == 200
        kind = "javascript" if file.endswith("js") else "css"
        assert kind in answer.headers["content-type"]
    assert httpx.get(f"{url}docs/files/..%2fcore.py").status_code == 404


def test_every_operation_is_shown_and_a_request_can_be_tried(url, tab, bodies, served):
    """Operations, fields and examples are on the page; `Execute` sends the example to the API."""
    said: list[str] = []
    hosts: set[str] = set()
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: hosts.add(httpx.URL(request.url).netloc.decode()))
    tab.goto(f"{url}docs")
    tab.wait_for_selector(".opblock")
    document = openapi.document(served)
    assert tab.locator(".opblock").count() == len(document["paths"])
    for path in document["paths"]:
        assert tab.locator(".opblock-summary-path", has_text=path).count() >= 1
    assert document["info"]["title"] in tab.locator(".info .title").inner_text()
    tab.locator("#operations-Embeddings-embed .opblock-summary").click()
    tab.get_by_role("button", name="Try it out").click()
    tab.get_by_role("button", name="Execute").click()
    tab.wait_for_selector("text=of the test")
    assert b"a red apple" in bodies[-1]
    assert said == []
    assert hosts - {""} == {httpx.URL(url).netloc.decode()}
