"""The file that Ray Serve writes for HAProxy, mended, and HAProxy itself running on it.

No Ray cluster: the file comes from Ray's own template, Routers are a few lines of a socket server.
"""

import re
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from serve_app import haproxy
from serve_app.api.errors import Answer, fault
from serve_app.listening import HAPROXY_SETTINGS, MOST_BUFFER_BYTES, buffer_bytes, free_port

LIMIT_S = 1
QUICK = f"from serve_app import haproxy; haproxy.HEAD_S = {LIMIT_S}; haproxy.main()"
PROGRAM = [sys.executable, "-c", QUICK, "-db"]
GIB = 1024**3


class Router(socketserver.ThreadingTCPServer):
    """Answers every request, or drops every other without a word, as a process that dies does."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, drops: bool) -> None:
        self.drops, self.asked = drops, 0
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(socketserver.StreamRequestHandler):
    """One connection to a Router."""

    server: Router

    def handle(self) -> None:
        with suppress(ConnectionError):
            while head := self.read_head():
                self.answer(head)

    def read_head(self) -> bytes:
        lines = []
        while (line := self.rfile.readline()) not in (b"", b"\r\n"):
            lines.append(line)
        return b"".join(lines)

    def answer(self, head: bytes) -> None:
        length = re.search(rb"content-length: (\d+)", head.lower())
        self.rfile.read(int(length[1]) if length else 0)
        if b"transfer-encoding: chunked" in head.lower():
            while self.rfile.readline() not in (b"", b"0\r\n"):
                pass
            self.rfile.readline()
        if not head.startswith(b"GET /-/healthz"):
            self.server.asked += 1
            if self.server.drops and self.server.asked % 2:
                raise ConnectionAbortedError
        self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")


def written_by_ray(folder: Path, routers: list[int], port: int) -> Path:
    """Write the file that Ray Serve would write, with our settings, and return its place."""
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions

    config = HAProxyConfig(
        socket_path=str(folder / "admin.sock"),
        enable_hap_optimization=False,
        stats_port=free_port(),
        metrics_port=free_port(),
        metrics_socket_path=str(folder / "metrics.sock"),
        timeout_client_s=LIMIT_S,
        retry_on=HAPROXY_SETTINGS["RAY_SERVE_HAPROXY_RETRY_ON"],
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        has_received_routes=True,
        has_received_servers=True,
    )
    servers = [ServerConfig(f"router-{port}", "127.0.0.1", port) for port in routers]
    backend = BackendConfig("app", "/", app_name="app", servers=servers)
    path = folder / "haproxy.cfg"
    api = HAProxyApi(config, {"app": backend}, str(path))
    api._generate_config_file_internal()
    return path


@pytest.fixture
def routers() -> list[Router]:
    """One that works, one that drops."""
    return [Router(drops=False), Router(drops=True)]


@pytest.fixture
def proxy(tmp_path: Path, routers: list[Router]) -> Iterator[SimpleNamespace]:
    """HAProxy before the Routers, started as Ray Serve starts it."""
    port = free_port()
    path = written_by_ray(tmp_path, [router.server_address[1] for router in routers], port)
    process = subprocess.Popen([*PROGRAM, "-f", str(path)], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: answers(port))
        yield SimpleNamespace(port=port, url=f"http://127.0.0.1:{port}/", process=process)
    finally:
        process.kill()
        process.wait()
        for router in routers:
            router.shutdown()
            router.server_close()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition, limit_s: float = 20) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "it did not come"
        time.sleep(0.02)


def raw(port: int, sent: bytes) -> httpx.Response:
    """Send bytes, and parse what comes until the other side closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(sent)
        head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    return httpx.Response(int(lines[0].split()[1]), content=body)


def is_ours(answer: httpx.Response, status: int) -> bool:
    """Whether an answer has a status and the body of our errors."""
    return answer.status_code == status and answer.json() == haproxy.body(status)


def test_each_error_has_the_form_of_the_routers_own():
    """The same keys and types, for each status that HAProxy answers by itself."""
    for status, (message, code, kind) in haproxy.ERRORS.items():
        answer = Answer(status, code, kind) if kind else Answer(status, code)
        assert haproxy.body(status) == fault(answer, message, "")


@pytest.mark.parametrize(("host", "place"), [(None, "127.0.0.1"), ("0.0.0.0", "*")])
def test_only_http_is_opened_to_others_and_only_where_it_is_wanted(tmp_path, host, place):
    """Statistics and metrics are this machine's; the admin socket is this user's."""
    text = written_by_ray(tmp_path, [1], 8000).read_text()
    assert len(re.findall(r"bind (\*?:)\d+", text)) == 2  # or there is nothing to mend any more
    mended = haproxy.mended(text, host)
    assert re.findall(r"bind (.*):\d+", mended) == ["127.0.0.1", place, "127.0.0.1"]
    assert "mode 666" in text
    assert "mode 600" in mended
    assert haproxy.mended(mended, host) == mended


def test_a_request_that_a_router_dropped_is_answered_by_another(proxy, routers):
    """As long as it fits into the buffer, even with its body in a packet of its own."""
    with httpx.Client(timeout=20) as client:
        small = [client.post(proxy.url, content=b"x" * 10_000) for _ in range(12)]
    assert [answer.status_code for answer in small] == [200] * 12
    assert routers[1].asked > 2  # or nothing was dropped


def test_a_larger_one_is_lost_and_so_is_told(proxy):
    """It is a 502 that says what to do, or a connection closed without a word.

    HAProxy does the second where it had used the Router's connection before; HTTP has clients try
    again then.
    """
    lost = 0
    for _ in range(12):
        try:
            answer = httpx.post(proxy.url, content=b"x" * 100_000, timeout=20)
        except httpx.RemoteProtocolError:
            lost += 1
            continue
        if answer.status_code != 200:
            lost += 1
            assert is_ours(answer, 502)
            assert answer.headers["retry-after"] == "1"
    assert lost


@pytest.mark.parametrize("length", [100, 100_000])
def test_a_body_that_stops_coming_is_given_up(proxy, length):
    """A small one, which is waited for whole, and one that is on its way to a Router."""
    sent = min(length - 1, 50_000) * b"a"
    answer = raw(
        proxy.port, b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % length + sent
    )
    assert is_ours(answer, 408 if length == 100 else 400)


def test_a_chunk_extension_larger_than_the_buffer_does_not_hold_the_connection(proxy):
    """HAProxy cannot read on, and waits for more until its time for a request's head is up."""
    head = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3;"
    answer = raw(proxy.port, head + b"x" * 100_000 + b"\r\nabc\r\n0\r\n\r\n")
    assert is_ours(answer, 408)


def test_what_is_no_http_gets_haproxys_own_words(proxy):
    """No setting of HAProxy changes these; whoever sends it reads no JSON."""
    assert raw(proxy.port, b"\0\1\2 nonsense\r\n\r\n").status_code == 400


class TestWithoutRouters:
    """Before the first one and after the last."""

    @pytest.fixture
    def routers(self) -> list[Router]:
        return []

    def test_a_request_is_a_503_that_says_to_come_back(self, proxy):
        """Not Ray's plain-text 500."""
        answer = httpx.post(proxy.url, content=b"{}")
        assert is_ours(answer, 503)
        assert answer.headers["retry-after"] == "1"


def test_it_stays_the_process_and_has_the_arguments_that_ray_looks_for(proxy):
    """Ray compares the process id, and finds its file among the arguments."""
    folder = Path(f"/proc/{proxy.process.pid}")
    assert (folder / "exe").readlink().name == "haproxy"
    assert b"haproxy.cfg" in (folder / "cmdline").read_bytes()


def test_it_ends_with_the_process_that_started_it(tmp_path):
    """However that ends: a HAProxy that outlived its cluster would keep the ports."""
    port = free_port()
    path = written_by_ray(tmp_path, [1], port)
    start = f"import subprocess; subprocess.run({[*PROGRAM, '-f', str(path)]!r})"
    parent = subprocess.Popen([sys.executable, "-c", start], stderr=subprocess.DEVNULL)
    wait_until(lambda: answers(port))
    parent.kill()
    parent.wait()
    wait_until(lambda: not answers(port))


def test_buffers_take_a_small_share_of_the_memory():
    """A power of two between Ray's own size and 1 MiB."""
    assert buffer_bytes(2 * GIB) == 16 * 1024
    assert buffer_bytes(24 * GIB) == 64 * 1024
    assert buffer_bytes(10_000 * GIB) == MOST_BUFFER_BYTES
    for memory in (16 * GIB, 100 * GIB, 200 * GIB):
        assert 2 * 4096 * buffer_bytes(memory) <= memory / 32
