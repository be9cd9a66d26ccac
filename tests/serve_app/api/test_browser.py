"""A page of another origin calls the API from Chromium, with CORS off and on."""

import html
import http.server
import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import uvicorn

from deployments.config import AppConfig
from deployments.messages import Embeddings, Timings, Usage
from deployments.metrics import RouterMetrics
from deployments.model.architecture import Architecture
from deployments.model.weights.source import DEMO
from deployments.routing.admission import Budget
from serve_app.api.ingress import http_app

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PAGE = """<!doctype html><pre id=seen>nothing</pre><script>
const ask = (api) => fetch(`${api}/v1/embeddings`, {
  method: "POST",
  headers: {"Content-Type": "application/json", Authorization: "Bearer k", "X-Priority": "bulk"},
  body: JSON.stringify({input: ["a"]}),
}).then(async (answer) => {
  const body = await answer.json();
  const made = answer.headers.get("x-embedding-fingerprint");
  return `rows ${body.data.length} by ${made}`;
}).catch((error) => `refused: ${error.message}`);
Promise.all(%s.map(ask)).then((all) => { seen.textContent = all.join("\\n"); });
</script>"""


class StandIn:
    """A Router that answers each item with ones."""

    config = AppConfig()
    architecture = Architecture.read(DEMO)

    def __init__(self) -> None:
        self.metrics = RouterMetrics()
        self.bytes = Budget("bytes", 1_000_000)

    async def embed(self, items: list[Any], *_: Any) -> Embeddings:
        rows = np.ones((len(items), 8), np.float32)
        return Embeddings(rows, Usage(3, 0), {}, Timings(), "text:f", ())


@contextmanager
def api(origins: Sequence[str]) -> Iterator[str]:
    """The API for pages of these origins; yields its URL."""
    router: Any = StandIn()
    config = AppConfig.model_validate({"cors": {"allow_origins": origins}})
    app = http_app(config, lambda: router)
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@contextmanager
def page_server() -> Iterator[tuple[str, list[bytes]]]:
    """Another origin; yields its URL and the page to put there."""
    pages: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(pages[-1])

        def log_message(self, *_: object) -> None:
            """Keep the test output clean."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", pages
    server.shutdown()
    server.server_close()
    thread.join()


def seen(address: str, folder: object) -> list[str]:
    """Open a page in Chromium and return the lines that its script wrote."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}"]
    command = [str(CHROMIUM), *options, "--virtual-time-budget=10000", "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout
    return html.unescape(found[1]).split("\n")


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_page_of_another_origin_is_answered_only_where_it_is_allowed(tmp_path):
    """Off: the browser refuses. On: rows and headers. Allowed to another origin: refused."""
    with page_server() as (origin, pages), ExitStack() as open_apis:
        allowed = ((), (origin,), ("*",), ("https://other.example",))
        urls = [open_apis.enter_context(api(origins)) for origins in allowed]
        pages.append((PAGE % json.dumps(urls)).encode())
        verdicts = seen(origin, tmp_path)
    refused, answered = "refused: Failed to fetch", "rows 1 by text:f"
    assert verdicts == [refused, answered, answered, refused]
