"""Do an API key's limits hold for all Routers while these come and go, and what do they cost?

    python -m benchmarks.keys [--minutes 5] [--json]

Routers go from one to four and back behind HAProxy. One key is sent twice its rate, evenly; another
large requests faster than they are done, so that it always has as many as it may under way. Then
two keys ask in turns, one without limits and one far below its own: what a Router's processor does
more for the second. It ends with code 1 if a request failed other than by its limit.
"""

import asyncio
import hashlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks.harness import report
from benchmarks.harness.load import Generator
from benchmarks.harness.mixes import calls, poisson
from benchmarks.harness.outcomes import Outcome, tally
from benchmarks.harness.processes import cpu_s
from benchmarks.harness.sampler import seconds_until
from benchmarks.harness.servers import service
from benchmarks.routers import START_S, routers_run
from deployments.config import AppConfig

FEW, MANY = 1, 4
SPARE = 2  # with one at most there is nothing to share
PER_MINUTE, AT_ONCE = 600, 8
LARGE_PER_S = 25.0  # of 64 texts: more than two cores do
LIMITS: dict[str, dict[str, int]] = {
    "rate": {"requests_per_minute": PER_MINUTE},
    "at once": {"max_concurrent_requests": AT_ONCE},
    "free": {},
    "far below": {"requests_per_minute": 1_000_000, "max_concurrent_requests": 1000},
}
TURNS, TURN_S, CALLERS = 8, 6.0, 8


def config(routers: int, keys: Path) -> AppConfig:
    """Return the service with so many Routers now."""
    scaling = {"min_replicas": routers, "max_replicas": max(routers, SPARE)}
    router = {"scaling": scaling, "num_cpus": 0.25}
    tower = {"num_cpus": 0.5}
    return AppConfig.model_validate(
        {
            "text": tower,
            "vision": {"enabled": False},
            "router": router,
            "api_keys_file": str(keys),
            "policy": {"startup_s": 2},  # Routers go soon after they are not needed
        }
    )


def scale(routers: int, keys: Path) -> None:
    """Have so many Routers, of the version that the first call brings.

    A new version would have books of its own.

    Raises:
        RuntimeError: they do not come.
    """
    from serve_app.app import autoscaling_config
    from serve_app.launch import deploy, spec

    changed = {
        "name": "Router",
        "autoscaling_config": autoscaling_config(config(routers, keys).router),
    }
    deploy(spec(config(FEW, keys)) | {"deployments": [changed]})
    if seconds_until(partial(settled, routers), 2 * START_S) is None:
        raise RuntimeError(f"{routers} Routers did not run within {2 * START_S} s")


def settled(routers: int) -> bool:
    """Tell whether as many Routers run as were asked for, or one more by their load."""
    return any(map(routers_run, range(routers, max(routers, SPARE) + 1)))


def write_keys(path: Path) -> None:
    """Write a keys file; each key is its own name."""
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in LIMITS}
    path.write_text(
        yaml.safe_dump([{"name": x, "sha256": y} | LIMITS[x] for x, y in digests.items()])
    )


@contextmanager
def on_a_thread(work: Coroutine[Any, Any, Any]) -> Iterator[None]:
    """Run a coroutine on a thread beside the block, and wait for its end."""
    thread = threading.Thread(target=lambda: asyncio.run(work))
    thread.start()
    try:
        yield
    finally:
        thread.join()


def most_at_once(outcomes: Sequence[Outcome], share: float) -> int:
    """Return how many answered requests were under way at once, for all but a share of the time.

    A caller sees a request for longer than the Router does, so this is more than the Router had.
    """
    right = [x for x in outcomes if x.status == 200]
    changes = sorted([(x.sent_s, 1) for x in right] + [(x.ended_s, -1) for x in right])
    under_way, seconds = 0, dict[int, float]()
    for (at_s, change), (until_s, _) in pairwise(changes):
        under_way += change
        seconds[under_way] = seconds.get(under_way, 0.0) + until_s - at_s
    left_s = sum(seconds.values()) * share
    for number in sorted(seconds, reverse=True):
        left_s -= seconds[number]
        if left_s < 0:
            return number
    return 0


def limits(url: str, minutes: float, keys: Path) -> dict[str, Any]:
    """Send too much while Routers come and go; return what was let in."""
    end_s = 60 * minutes
    rated = Generator(url, calls("query"), key="rate")
    many = Generator(url, calls("64 texts"), key="at once")
    twice_s = 30.0 / PER_MINUTE  # between two requests

    async def send() -> None:
        times_s = (number * twice_s for number in range(int(end_s / twice_s)))
        await asyncio.gather(rated.open(times_s), many.open(poisson(end_s, LARGE_PER_S)))

    begin_s = time.monotonic()
    with on_a_thread(send()):
        for number, share in ((MANY, 0.3), (FEW, 0.65)):
            time.sleep(max(0.0, begin_s + share * end_s - time.monotonic()))
            scale(number, keys)
            report.progress(f"{number} Routers after {time.monotonic() - begin_s:.0f} s")
    let_in = [x.ended_s - begin_s for x in rated.outcomes if x.status == 200]
    late = [at_s for at_s in let_in if at_s > 60]  # the first minute has two minutes' requests
    at_once = most_at_once(many.outcomes, 0.01), most_at_once(many.outcomes, 0.0)
    everything = [*rated.outcomes, *many.outcomes]
    return {
        "let_in_of_rate": round(len(late) / (end_s - 60) / (PER_MINUTE / 60), 3),
        "at_once_p99_and_most": at_once,
        "limit_at_once": AT_ONCE,
        "outcomes": tally(everything),
        "failed": sum(x.status not in (200, 429) for x in everything),
    }


def costs(url: str) -> dict[str, Any]:
    """Ask in turns with and without limits; return the Router's milliseconds for a request."""
    spent: dict[str, list[float]] = {"free": [], "far below": []}
    for turn in range(2 * TURNS):
        key = ("free", "far below")[(turn + turn // 2) % 2]
        generator = Generator(url, calls("query"), key=key)
        before = cpu_s(os.getpid())["Router"]
        asyncio.run(generator.closed(TURN_S, CALLERS))
        after = cpu_s(os.getpid())["Router"]
        spent[key].append(1e3 * (after - before) / len(generator.outcomes))
    middle = {key: median(values) for key, values in spent.items()}
    return {
        "router_ms": {key: round(value, 3) for key, value in middle.items()},
        "limits_ms": round(middle["far below"] - middle["free"], 3),
        "turns_ms": {key: [round(x, 2) for x in values] for key, values in spent.items()},
    }


def measure(minutes: float) -> dict[str, Any]:
    """Start the service and ask both questions."""
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.yaml"
        write_keys(keys)
        with service(config(FEW, keys), "haproxy") as url:
            scale(FEW, keys)
            return {"limits": limits(url, minutes, keys), "cost": costs(url)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line; end with code 1 where a request failed."""
    parser = report.command(__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    options = parser.parse_args(arguments)
    results = measure(options.minutes)
    report.write(options, results, report.show_values)
    sys.exit(1 if results["limits"]["failed"] else 0)


if __name__ == "__main__":
    main()
