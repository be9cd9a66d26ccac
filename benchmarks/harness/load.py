"""The load generator: requests in a closed or an open loop, from a process of its own.

    python -m benchmarks.harness.load --url http://127.0.0.1:8000 --mix query --callers 8
    python -m benchmarks.harness.load --url ... --mix "32 texts" "1 image" --rate 12 --seconds 60
    python -m benchmarks.harness.load --url ... --mix trace --trace FILE --speedup 2

Prints JSON: what became of the requests, latencies, and the share of one core that the generator
itself used (near 1 it would have been the limit). It never sends a request again.
"""

import argparse
import asyncio
import base64
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from benchmarks.harness.mixes import Call, calls, poisson, trace_lengths, trace_times
from benchmarks.harness.outcomes import Outcome, summary, write

PATIENCE_S = 60.0  # also the service's own limit
MIN_COSINE = 0.999  # of the probe's row with the first one


class Generator:
    """Sends requests and remembers what became of them.

    Args:
        url: of the server.
        requests: what to send, in this order.
        patience_s: how long a caller waits; it says so, and leaves after it.
        check: look at the rows' number and order, and at the probe's row.
        key: an API key to send.
    """

    def __init__(
        self,
        url: str,
        requests: Iterator[Call],
        patience_s: float = PATIENCE_S,
        check: bool = False,
        key: str = "",
    ) -> None:
        self.outcomes: list[Outcome] = []
        self._url = f"{url}/v1/embeddings"
        self._requests = requests
        self._patience = aiohttp.ClientTimeout(total=patience_s)
        self._headers = {"content-type": "application/json", "x-timeout-s": str(patience_s)}
        if key:
            self._headers["authorization"] = f"Bearer {key}"
        self._check = check
        self._probe: Any = None  # Any: rows, whose numpy type says nothing here

    async def closed(self, seconds: float, callers: int) -> None:
        """Let callers ask until the time is over, each waiting for its answer."""
        end_s = time.monotonic() + seconds

        async def caller() -> None:
            while time.monotonic() < end_s and (call := next(self._requests, None)):
                await self._send(client, call, time.monotonic())

        async with self._client() as client:
            await asyncio.gather(*(caller() for _ in range(callers)))

    async def open(self, times_s: Iterator[float]) -> None:
        """Send when it is time to, whatever becomes of the requests before."""
        begin_s, tasks = time.monotonic(), []
        async with self._client() as client:
            for after_s, call in zip(times_s, self._requests, strict=False):
                due_s = begin_s + after_s
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                tasks.append(asyncio.create_task(self._send(client, call, due_s)))
            await asyncio.gather(*tasks)

    def _client(self) -> aiohttp.ClientSession:
        """Return a client without a limit on its connections."""
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=self._patience, headers=self._headers
        )

    async def _send(self, client: aiohttp.ClientSession, call: Call, due_s: float) -> None:
        """Send one request; in an open loop its latency counts from when it was due."""
        sent_s = time.monotonic()
        status, code, content = 0, "", b""
        headers: Mapping[str, str] = {}
        try:
            async with client.post(self._url, data=call.body) as answer:
                content, headers = await answer.read(), answer.headers
                status = answer.status
        except (aiohttp.ClientError, TimeoutError) as error:
            code = type(error).__name__
        ended_s = time.monotonic()
        if status == 200:
            code = self._fault(call, content) if self._check else ""
        elif status:
            code = error_code(content)
        retry_ms = headers.get("retry-after-ms")
        self.outcomes.append(
            Outcome(
                call.mix,
                due_s,
                sent_s,
                ended_s,
                status,
                code,
                call.items,
                call.tokens,
                len(content),
                headers.get("server-timing", ""),
                float(retry_ms) / 1e3 if retry_ms else None,
            )
        )

    def _fault(self, call: Call, content: bytes) -> str:
        """Say what is wrong with an answer, nothing where it is right."""
        data = json.loads(content)["data"]
        if [row["index"] for row in data] != list(range(call.items)):
            return "wrong number or order"
        if not call.is_probed:
            return ""
        row = np.frombuffer(base64.b64decode(data[0]["embedding"]), np.float32)
        if self._probe is None:
            self._probe = row
        return "" if float(row @ self._probe) >= MIN_COSINE else "wrong row"


def ready(requests: Iterator[Call]) -> Iterator[Call]:
    """Make the first request now: drawing its images takes seconds, which are not the server's."""
    return chain(list(islice(requests, 1)), requests)


def error_code(content: bytes) -> str:
    """Return an error's code; its text where the answer is not the service's own."""
    try:
        return str(json.loads(content)["code"])
    except (ValueError, KeyError, TypeError):
        return content[:60].decode(errors="replace").strip() or "no body"


def command() -> argparse.ArgumentParser:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", required=True)
    parser.add_argument("--mix", nargs="+", default=["query"], help="each request is one of these")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--requests", type=int, help="end after so many")
    parser.add_argument("--callers", type=int, default=1, help="of the closed loop")
    parser.add_argument("--rate", type=float, help="requests per second: an open loop")
    parser.add_argument("--trace", type=Path, help="CSV with times and tokens, for the mix 'trace'")
    parser.add_argument("--speedup", type=float, help="of the trace's own times: an open loop")
    parser.add_argument("--patience-s", type=float, default=PATIENCE_S)
    parser.add_argument("--encoding", default="base64", help="the embedding_type asked for")
    parser.add_argument("--check", action="store_true", help="look at the rows")
    parser.add_argument("--outcomes", type=Path, help="write each request there, a line of JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Send and print."""
    options = command().parse_args(arguments)
    lengths = trace_lengths(options.trace) if options.trace else ()
    requests = calls(*options.mix, lengths=lengths, encoding=options.encoding, probe=options.check)
    requests = ready(islice(requests, options.requests))
    generator = Generator(options.url, requests, options.patience_s, options.check)
    begin_s, begin_cpu_s = time.monotonic(), time.process_time()
    if options.speedup:
        times_s = trace_times(options.seconds, options.trace, options.speedup)
        asyncio.run(generator.open(times_s))
    elif options.rate:
        asyncio.run(generator.open(poisson(options.seconds, options.rate)))
    else:
        asyncio.run(generator.closed(options.seconds, options.callers))
    seconds = time.monotonic() - begin_s
    if not options.requests:
        seconds = max(seconds, options.seconds)
    if options.outcomes:
        write(generator.outcomes, options.outcomes)
    print(json.dumps(summary(generator.outcomes, seconds, time.process_time() - begin_cpu_s)))


if __name__ == "__main__":
    main()
