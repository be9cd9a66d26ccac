"""What do callers see when a part below the replicas is lost, and for how long?

    python -m benchmarks.faults --what proxy|haproxy|haproxy-manager|controller|router [--json]
    python -m benchmarks.faults --what node|frozen-node [--json]
    python -m benchmarks.faults --what router-bodies [--json]

Single texts are sent at a steady rate from another process, without retries; the part is killed
some seconds later. For the nodes the shipped cluster.yaml's node types become make-believe nodes on
this machine. Ray's own settings are taken from the environment, as in production.

`router-bodies` kills a Router again and again while it has bodies of many sizes under way, before
a vision tower that only keeps time, and counts what is lost by size.
"""

import os
import signal
import time
from collections.abc import Collection, Sequence
from typing import Any

import psutil

from benchmarks.harness import h100, report
from benchmarks.harness.callers import asking
from benchmarks.harness.fake_cluster import deploy, nodes, placements, shipped_cluster
from benchmarks.harness.mixes import calls
from benchmarks.harness.outcomes import Outcome, seen_after, tally
from benchmarks.harness.processes import command, is_alive, of_kind, signal_tree
from benchmarks.harness.sampler import seconds_until
from benchmarks.harness.servers import Proxy, paced_towers, service
from deployments.config import AppConfig

LOAD = "--rate", "20", "--check"
BEFORE_S = 6
AFTER_S = {"process": 40, "node": 75}
PROCESSES: dict[str, tuple[str, Proxy]] = {  # what is killed, and behind which ingress
    "proxy": ("proxy", "stock"),
    "haproxy": ("haproxy", "haproxy"),
    "haproxy-manager": ("HAProxy manager", "haproxy"),
    "controller": ("controller", "haproxy"),
    "router": ("Router", "haproxy"),
}
BODIES = "query", "1 image", "4 images", "8 images", "1 photo", "4 photos"
BODY_KILLS = 8
BETWEEN_KILLS_S = 12  # for a new Router to start, and for its share of requests to be under way
BODY_CALLERS = 24
CLOSING_S = 0.1  # for which HAProxy may still send to a killed Router
SLOW_IMAGES_PER_S = 25  # so that every caller has a request under way at a kill
NODES = {"node": signal.SIGKILL, "frozen-node": signal.SIGSTOP}
SETTINGS: dict[str, Any] = {
    "text": {"num_cpus": 0.25},
    "vision": {"enabled": False},
    "router": {"num_replicas": 2, "num_cpus": 0.25},
}


def lost_process(kind: str, proxy: Proxy) -> dict[str, Any]:
    """Start the service, kill a part of it under load, and return what callers saw."""
    after_s = AFTER_S["process"]
    with (
        service(AppConfig.model_validate(SETTINGS), proxy) as url,
        asking(url, ["query"], BEFORE_S + after_s, *LOAD) as wait,
    ):
        time.sleep(BEFORE_S)
        victims = of_kind(os.getpid(), kind)
        killed = command(victims[0])[:60]
        victims[0].kill()
        fault_s = time.monotonic()
        report.progress(f"killed {killed}")

        def is_replaced() -> bool:
            living = {process.pid for process in of_kind(os.getpid(), kind)}
            return victims[0].pid not in living and len(living) >= len(victims)

        back_s = seconds_until(is_replaced, after_s)
        saw = seen_after(wait(), fault_s)
    return {"killed": killed, "process_back_s": back_s} | saw


def lost_bodies() -> dict[str, Any]:
    """Kill Routers that have bodies of many sizes under way; return what was lost by size."""
    os.environ[h100.IMAGES_PER_S_VARIABLE] = str(SLOW_IMAGES_PER_S)  # before Ray starts
    config = AppConfig.model_validate(SETTINGS | {"vision": {"num_cpus": 0.25}})
    seconds, kills_s = (BODY_KILLS + 1) * BETWEEN_KILLS_S, []
    with (
        service(config, "haproxy", towers=paced_towers) as url,
        asking(url, BODIES, seconds, "--callers", str(BODY_CALLERS)) as wait,
    ):
        for kill in range(BODY_KILLS):
            time.sleep(BETWEEN_KILLS_S)
            routers = of_kind(os.getpid(), "Router")
            routers[kill % len(routers)].kill()
            kills_s.append(time.monotonic())
            report.progress(f"killed one of {len(routers)} Routers")
        outcomes = wait()
    sizes = {mix: len(next(calls(mix)).body) for mix in BODIES}
    return {
        f"{sizes[mix]:,} bytes ({mix})": under_way([x for x in outcomes if x.mix == mix], kills_s)
        for mix in BODIES
    }


def under_way(outcomes: Sequence[Outcome], kills_s: Sequence[float]) -> dict[str, Any]:
    """Count requests, those under way at a kill, and what was lost; a kill ends half at most."""
    cut = [x for x in outcomes if any(_was_under_way(x, at_s) for at_s in kills_s)]
    return {
        "requests": len(outcomes),
        "under way at a kill": len(cut),
        "lost": tally([x for x in cut if not x.is_right]),
        "lost otherwise": tally([x for x in outcomes if not (x.is_right or x in cut)]),
    }


def _was_under_way(outcome: Outcome, kill_s: float) -> bool:
    return outcome.sent_s <= kill_s + CLOSING_S and kill_s <= outcome.ended_s


def lost_node(number: signal.Signals) -> dict[str, Any]:
    """Take one of two text nodes away under load, and return what callers saw."""
    after_s = AFTER_S["node"]
    with shipped_cluster() as (url, head):
        placed_s = deploy({"text": (2, 2)})
        with asking(url, ["query"], BEFORE_S + after_s, *LOAD) as wait:
            time.sleep(BEFORE_S)
            lost = signal_tree(of_kind(head, "TextTower")[0].ppid(), number)
            fault_s = time.monotonic()
            report.progress(f"{number.name} to a node's {len(lost)} processes")
            noticed_s = seconds_until(lambda: nodes()["text"] < 2, after_s)
            back_s = seconds_until(lambda: running_texts(head, lost) == 2, after_s)
            saw = seen_after(wait(), fault_s)
        for process in filter(is_alive, lost):  # a frozen one has to go, too
            process.kill()
    back_s = None if back_s is None else round((noticed_s or 0) + back_s, 1)
    return {"placed_s": placed_s, "noticed_s": noticed_s, "two_replicas_again_s": back_s} | saw


def running_texts(head: int, lost: Collection[psutil.Process]) -> int:
    """Count the running text replicas, once the cluster counts only living ones."""
    alive = [process for process in of_kind(head, "TextTower") if process not in lost]
    running = len(placements().get("TextTower", []))
    return running if len(alive) >= running else 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = report.command(__doc__)
    parser.add_argument("--what", choices=(*PROCESSES, *NODES, "router-bodies"), required=True)
    options = parser.parse_args(arguments)
    if options.what in PROCESSES:
        results = lost_process(*PROCESSES[options.what])
    elif options.what == "router-bodies":
        results = lost_bodies()
    else:
        results = lost_node(NODES[options.what])
    report.write(options, {"what": options.what} | results, report.show_values)


if __name__ == "__main__":
    main()
