"""What do callers see when a part below the replicas is lost, and for how long?

    python -m benchmarks.faults --what proxy|haproxy|haproxy-manager|controller|router [--json]
    python -m benchmarks.faults --what node|frozen-node [--json]

Single texts are sent at a steady rate from another process, without retries; the part is killed
some seconds later. For the nodes the shipped cluster.yaml's node types become make-believe nodes on
this machine. Ray's own settings are taken from the environment, as in production.
"""

import os
import signal
import time
from collections.abc import Collection, Sequence
from typing import Any

import psutil

from benchmarks.harness import report
from benchmarks.harness.callers import asking
from benchmarks.harness.fake_cluster import deploy, nodes, placements, shipped_cluster
from benchmarks.harness.outcomes import seen_after
from benchmarks.harness.processes import command, is_alive, of_kind, signal_tree
from benchmarks.harness.sampler import seconds_until
from benchmarks.harness.servers import Proxy, service
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
    parser.add_argument("--what", choices=(*PROCESSES, *NODES), required=True)
    options = parser.parse_args(arguments)
    if options.what in PROCESSES:
        results = lost_process(*PROCESSES[options.what])
    else:
        results = lost_node(NODES[options.what])
    report.write(options, {"what": options.what} | results, report.show_values)


if __name__ == "__main__":
    main()
