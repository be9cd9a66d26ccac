"""What does the service answer to connections that are no HTTP, and to bodies that are no requests?

    python -m benchmarks.malformed [--connections 20000] [--seed 1] [--proxy haproxy] [--json]

One Router answers itself, as `jina-clip-serve up` has it on one machine, or is behind HAProxy. Each
connection sends a request that was broken at random places, and ends its side if no answer comes.
None may be answered with a 5xx, and none may still be open after 20 s.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.harness import report
from benchmarks.harness.servers import Proxy, new_ingress, ray_folder
from deployments.config import AppConfig
from serve_app.listening import LOOPBACK

AT_ONCE = 32
LIMIT_S = 20.0
PATIENCE_S = 0.3  # before this side of the connection is closed
GOOD = (
    b'{"input": ["red apple", {"image": "data:image/png;base64,iVBORw0KGgo="}], '
    b'"dimensions": 8, "errors": "partial", "truncate": true}'
)
HEADS: Sequence[bytes] = (
    b"Content-Length: %d\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n",
    b"Content-Length: -1\r\n",
    b"Content-Length: 99999999999999999999999\r\n",
    b"Content-Length: 3\r\n",
    b"Content-Encoding: gzip\r\nContent-Length: %d\r\n",
    b"Content-Encoding: deflate, gzip, br\r\nContent-Length: %d\r\n",
    b"Expect: 100-continue\r\nContent-Length: %d\r\n",
    b"Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: %d\r\n",
    b"X-Timeout-S: nan\r\nX-Priority: \xff\r\nContent-Length: %d\r\n",
    b"",
)


def broken(dice: random.Random) -> bytes:
    """Return a request with a few faults."""
    body = bytearray(GOOD)
    for _ in range(dice.randrange(4)):
        place = dice.randrange(len(body))
        cut = place + dice.choice((0, 1, 1, 8))
        body[place:cut] = dice.randbytes(dice.choice((0, 1, 3))) or dice.choice(
            (b"[" * 50, b'"', b"\\u")
        )
    head = dice.choice(HEADS)
    head = head % len(body) if b"%d" in head else head
    if b"chunked" in head:
        size = dice.choice(
            (b"%x" % len(body), b"zz", b"-1", b"ffffffffffffffff", b"5;" + b"x" * 99)
        )
        body = bytearray(size + b"\r\n" + bytes(body) + b"\r\n0\r\n\r\n")
    method = dice.choice((b"POST", b"POST", b"POST", b"GET", b"P\0ST", b"PRI"))
    path = dice.choice(
        (b"/v1/embeddings", b"/v1/embeddings", b"/v1/classify", b"/%zz", b"//", b"*")
    )
    line = method + b" " + path + dice.choice((b" HTTP/1.1", b" HTTP/1.1", b" HTTP/9.9", b""))
    request = (
        line + b"\r\nHost: x\r\nContent-Type: application/json\r\n" + head + b"\r\n" + bytes(body)
    )
    if dice.random() < 0.2:
        request = request[: dice.randrange(len(request))]
    if dice.random() < 0.05:
        request = dice.randbytes(dice.randrange(1, 300))
    return request


async def attack(port: int, connections: int, seed: int) -> Counter[str]:
    """Send broken requests, some at once; count the statuses of their answers.

    `none` is a connection that was closed without one, `hangs` one that stayed open.
    """
    dice = random.Random(seed)
    waiting = iter([broken(dice) for _ in range(connections)])
    seen: Counter[str] = Counter()

    async def send() -> None:
        for request in waiting:
            seen[await _status(port, request)] += 1

    await asyncio.gather(*(send() for _ in range(AT_ONCE)))
    return seen


async def _status(port: int, request: bytes) -> str:
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    try:
        async with asyncio.timeout(LIMIT_S):
            writer.write(request)
            first = asyncio.create_task(reader.read(64 * 1024))
            done, _ = await asyncio.wait([first], timeout=PATIENCE_S)
            if not done:
                writer.write_eof()  # nothing more will come
            answer = await first
    except ConnectionError:
        return "none"
    except TimeoutError:
        return "hangs"
    finally:
        writer.close()
    return answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.1 ") else "none"


def measure(connections: int, seed: int, proxy: Proxy) -> dict[str, Any]:
    """Start the service and attack it; afterwards it has to be ready."""
    from serve_app.server import running

    config = AppConfig.model_validate({"text": {"num_cpus": 0.5}, "vision": {"num_cpus": 0.5}})
    with ray_folder():
        ingress = new_ingress(proxy)
        with running(config, ingress):
            seen = asyncio.run(attack(ingress.port, connections, seed))
            after = asyncio.run(_status(ingress.port, b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n"))
    faults = sum(count for status, count in seen.items() if status.startswith("5"))
    return {"answers": dict(sorted(seen.items())), "5xx": faults, "ready_afterwards": after}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = report.command(__doc__)
    parser.add_argument("--connections", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--proxy", choices=("direct", "haproxy"), default="direct")
    options = parser.parse_args(arguments)
    found = measure(options.connections, options.seed, options.proxy)
    report.write(options, found, report.show_values)


if __name__ == "__main__":
    main()
