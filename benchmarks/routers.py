"""Is a request lost when the number of Routers changes?

    python -m benchmarks.routers [--minutes 15] [--changes 10] [--json]

Routers go from one to three and back, again and again, behind HAProxy, which Ray Serve starts anew
at each change. Callers keep one connection each and never send a request again: some ask all the
time, some send work of 0.5 to 3 s, and some are silent for up to the 120 s after which an old
HAProxy is stopped. It ends with code 1 if a request failed.
"""

import asyncio
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp

from benchmarks.harness import report
from benchmarks.harness.mixes import calls
from benchmarks.harness.outcomes import Outcome, quantile, tally
from benchmarks.harness.sampler import seconds_until
from benchmarks.harness.servers import service
from deployments.config import AppConfig

MANY, FEW = 3, 1
START_S = 60  # for a Router to run, or to be gone
SETTINGS: dict[str, Any] = {"text": {"num_cpus": 0.5}, "vision": {"enabled": False}}


@dataclass(frozen=True)
class Kind:
    """Callers of one kind.

    Attributes:
        mix: what each request has.
        number: of callers.
        silence_s: the least and the most seconds between an answer and the next request.
    """

    mix: str
    number: int
    silence_s: tuple[float, float]


KINDS = {
    "short": Kind("query", 4, (0.0, 0.5)),
    "long": Kind("64 texts of 120 words", 2, (0.0, 1.0)),
    "silent": Kind("query", 12, (5.0, 60.0)),
    "silent until the stop": Kind("query", 12, (112.0, 121.0)),
}


async def call_on(url: str, kind: str, end_s: float, seed: int) -> list[Outcome]:
    """Ask over one connection until the time is over."""
    asked, chance, requests = KINDS[kind], random.Random(seed), calls(KINDS[kind].mix)
    outcomes = []
    connector = aiohttp.TCPConnector(limit=1, keepalive_timeout=600)
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as client:
        while (sent_s := time.monotonic()) < end_s:
            status, code = 0, ""
            try:
                headers = {"content-type": "application/json"}
                body = next(requests).body
                async with client.post(
                    f"{url}/v1/embeddings", data=body, headers=headers
                ) as answer:
                    content, status = await answer.read(), answer.status
                    code = "" if status == 200 else content[:80].decode(errors="replace")
            except (aiohttp.ClientError, TimeoutError) as error:
                code = f"{type(error).__name__}: {error}"
            ended_s = time.monotonic()
            outcomes.append(Outcome(kind, sent_s, sent_s, ended_s, status, code))
            await asyncio.sleep(min(chance.uniform(*asked.silence_s), max(0.0, end_s - ended_s)))
    return outcomes


async def all_callers(url: str, end_s: float) -> list[Outcome]:
    """Run every caller to the end."""
    kinds = [kind for kind in KINDS for _ in range(KINDS[kind].number)]
    running = (call_on(url, kind, end_s, seed) for seed, kind in enumerate(kinds))
    return [outcome for outcomes in await asyncio.gather(*running) for outcome in outcomes]


@contextmanager
def calling(url: str, end_s: float) -> Iterator[Callable[[], list[Outcome]]]:
    """Run the callers on a thread; yields what waits for the outcomes."""
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.extend(asyncio.run(all_callers(url, end_s))))
    thread.start()

    def wait() -> list[Outcome]:
        thread.join()
        return outcomes

    yield wait


def config(routers: int) -> AppConfig:
    """Return the service with so many Routers."""
    router = {"num_replicas": routers, "num_cpus": 0.25, "cache_bytes": 0}
    return AppConfig.model_validate(SETTINGS | {"router": router})


def routers_run(number: int) -> bool:
    """Tell whether exactly so many Routers run, and no other."""
    from ray import serve

    application = serve.status().applications["embeddings"]
    states = application.deployments["Router"].replica_states
    return application.status == "RUNNING" and {str(k): v for k, v in states.items()} == {
        "RUNNING": number
    }


def measure(minutes: float, changes: int) -> dict[str, Any]:
    """Start the service, change its Routers under load, and count.

    Raises:
        RuntimeError: the Routers were not changed.
    """
    took_s = []
    with service(config(FEW), "haproxy") as url:
        from serve_app.launch import launch  # brings Ray, which has read its settings now

        begin_s = time.monotonic()
        with calling(url, begin_s + 60 * minutes) as wait:
            for change in range(changes):
                due_s = begin_s + 60 * minutes * (change + 0.5) / changes
                time.sleep(max(0.0, due_s - time.monotonic()))
                number = MANY if change % 2 == 0 else FEW
                change_s = time.monotonic()
                launch(config(number))
                if seconds_until(partial(routers_run, number), START_S) is None:
                    raise RuntimeError(f"{number} Routers did not run within {START_S} s")
                took_s.append(round(time.monotonic() - change_s, 1))
                report.progress(f"{number} Routers after {took_s[-1]} s")
            outcomes = wait()
    failed = [x for x in outcomes if not x.is_right]
    return {
        "requests": {kind: sum(x.mix == kind for x in outcomes) for kind in KINDS},
        "failed": {kind: tally([x for x in failed if x.mix == kind]) for kind in KINDS},
        "failed_at_s": [round(x.ended_s - begin_s, 1) for x in failed],
        "long_p50_s": quantile(0.5, [x.latency_s for x in outcomes if x.mix == "long"]),
        "changes_took_s": took_s,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line; end with code 1 where a request failed."""
    parser = report.command(__doc__)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--changes", type=int, default=10)
    options = parser.parse_args(arguments)
    results = measure(options.minutes, options.changes)
    report.write(options, results, report.show_values)
    sys.exit(1 if any(results["failed"].values()) else 0)


if __name__ == "__main__":
    main()
