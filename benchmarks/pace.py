"""What stands between the socket and a tower at the pace of an H100?

    python -m benchmarks.pace [--mixes query "32 texts" ...] [--proxy haproxy] [--floor] [--json]

The Router, the ingress and the towers' engines are real; the model is not: it answers at a given
pace (harness/paced.py) and takes no processor time. For each mix: one caller, many callers, an open
loop at growing rates, the processor time of each process for a request, and from it how many cores
the Routers and the proxy take for each GPU. With `--floor` also beside a text tower whose answers
are ready: what that takes of the processor is Ray's.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.harness import h100, report
from benchmarks.harness.callers import measure
from benchmarks.harness.servers import Proxy, paced_towers, service
from deployments.config import AppConfig

MIXES = (
    "query",
    "32 texts of 12 words",
    "32 texts of 60 words",
    "128 texts of 60 words",
    "8 images",
)
CONFIG = {"model": {"device": "cpu"}, "text": {"num_cpus": 1}, "vision": {"num_cpus": 1}}
IN_FRONT = ("Router", "haproxy", "proxy")


def cores_in_front_per_gpu(measured: dict[str, Any]) -> float:
    """Return how many cores the Routers and the proxy take for each GPU."""
    cpu_ms: dict[str, float] = measured["cpu_ms_per_request"]
    in_front_ms = sum(cpu_ms.get(kind, 0.0) for kind in IN_FRONT)
    return round(in_front_ms / 1e3 * gpu_requests_per_s(measured["many callers"]), 2)


def gpu_requests_per_s(many: dict[str, Any]) -> float:
    """Return the requests of this kind that a GPU computes in a second, from their mean cost."""
    requests = max(float(many["requests_per_s"]), 1e-9)
    if many["tokens_per_s"]:
        return h100.TEXT_TOKENS_PER_S * requests / float(many["tokens_per_s"])
    return h100.IMAGES_PER_S * requests / max(float(many["items_per_s"]), 1e-9)


def compare(
    mixes: Sequence[str], proxy: Proxy, seconds: float, callers: int, ready: bool = False
) -> dict[str, Any]:
    """Start the service with paced towers, and measure every mix."""
    results = {}
    towers = partial(paced_towers, ready)
    with service(AppConfig.model_validate(CONFIG), proxy, towers=towers) as url:
        for mix in mixes:
            measured = measure(url, mix, seconds, callers)
            cores = cores_in_front_per_gpu(measured)
            results[mix] = measured | {"cores_in_front_per_gpu": cores}
            report.progress(f"{mix} {results[mix]}")
    return results


def floor_ms(options: argparse.Namespace) -> dict[str, float]:
    """Return a ready text tower's processor time by mix; Ray is started anew, in a process."""
    command = [sys.executable, "-m", "benchmarks.pace", "--json", "--ready", "--mixes"]
    more = "--proxy", options.proxy, "--seconds", f"{options.seconds:g}"
    mixes = [mix for mix in options.mixes if "image" not in mix and "photo" not in mix]
    asked = [*command, *mixes, *more, "--callers", str(options.callers)]
    done = subprocess.run(asked, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)["results"]
    return {mix: found[mix]["cpu_ms_per_request"]["TextTower"] for mix in found}


def show(results: dict[str, Any]) -> None:
    """Print a line for each mix."""
    for mix, result in results.items():
        one, many = result["one caller"], result["many callers"]
        loops = ", ".join(
            f"{loop['p50_ms']}/{loop['p99_ms']}" for loop in result["open loop"].values()
        )
        print(
            f"{mix:24s} {many['requests_per_s']:7.1f} requests/s, p50 {many['p50_ms']} ms, "
            f"one caller p50 {one['p50_ms']} ms, open loop p50/p99 {loops} ms; "
            f"CPU ms per request {result['cpu_ms_per_request']}; "
            f"cores in front for each GPU {result['cores_in_front_per_gpu']}; "
            f"TextTower of ready answers {result.get('floor_ms')}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = report.command(__doc__)
    parser.add_argument("--mixes", nargs="*", default=MIXES)
    parser.add_argument("--proxy", choices=("haproxy", "stock"), default="haproxy")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--callers", type=int, default=48)
    parser.add_argument("--floor", action="store_true", help="also a tower of ready answers")
    parser.add_argument("--ready", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    asked = options.mixes, options.proxy, options.seconds, options.callers, options.ready
    results = compare(*asked)
    for mix, spent_ms in floor_ms(options).items() if options.floor else ():
        results[mix]["floor_ms"] = spent_ms
    report.write(options, results, show)


if __name__ == "__main__":
    main()
