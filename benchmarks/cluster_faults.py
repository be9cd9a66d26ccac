"""What do callers see when a part below the replicas is lost, and for how long?

    python -m benchmarks.cluster_faults --what proxy|haproxy|controller|router  # one machine
    python -m benchmarks.cluster_faults --what node|frozen-node|types           # make-believe nodes

Single texts are sent at a steady rate from another process, without retries; the part is killed
some seconds later. `types` kills nothing: it puts the shipped cluster.yaml's node types and the
shipped Serve config on make-believe nodes and tells where replicas run and when nodes come and go.
Ray's own settings are taken from the environment, as in production.
"""

import argparse
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import node_faults
from benchmarks.harness.callers import callers, seconds_until, seen
from benchmarks.harness.processes import of_kind
from deployments.config import AppConfig
from serve_app.server import (
    EVERYWHERE,
    HAPROXY_PORTS,
    LOOPBACK,
    Ingress,
    free_port,
    prepare_environment,
    running,
)

RATE_PER_S = 20
BEFORE_S = 6
AFTER_S = 40
ONE_MACHINE = {  # what is killed, and behind which ingress
    "proxy": ("proxy", "stock"),
    "haproxy": ("haproxy", "haproxy"),
    "haproxy-manager": ("HAProxy manager", "haproxy"),
    "controller": ("controller", "haproxy"),
    "router": ("Router", "haproxy"),
}
SETTINGS: dict[str, Any] = {
    "text": {"num_cpus": 0.25},
    "vision": {"enabled": False},
    "router": {"num_replicas": 2, "num_cpus": 0.25},
}


def one_machine(what: str, folder: Path) -> dict[str, Any]:
    """Start the service, kill a part of it under load, and return what callers saw."""
    kind, proxy = ONE_MACHINE[what]
    for variable in HAPROXY_PORTS:
        os.environ[variable] = str(free_port())
    ingress = Ingress("stock", LOOPBACK, free_port())
    if proxy == "haproxy":
        ingress = Ingress("haproxy", EVERYWHERE, free_port())
    prepare_environment(ingress)
    with (
        running(AppConfig.model_validate(SETTINGS), ingress) as url,
        callers(url, folder, RATE_PER_S, BEFORE_S + AFTER_S, "query") as outcomes,
    ):
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # leaves nothing behind
        time.sleep(BEFORE_S)
        victims = of_kind(os.getpid(), kind)
        victims[0].kill()
        fault_s = time.monotonic()
        back_s = seconds_until(lambda: _replaced(kind, victims[0].pid, len(victims)), AFTER_S)
        saw = seen(outcomes(), fault_s)
    return {"killed": victims[0].command[:60], "process_back_s": back_s} | saw


def _replaced(kind: str, victim: int, wanted: int) -> bool:
    pids = {process.pid for process in of_kind(os.getpid(), kind)}
    return victim not in pids and len(pids) >= wanted


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", choices=(*ONE_MACHINE, *node_faults.SCENES), required=True)
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    os.environ["RAY_TMPDIR"] = str(folder)
    try:
        if options.what in ONE_MACHINE:
            result = one_machine(options.what, folder)
        else:
            result = node_faults.run(options.what, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({"what": options.what} | result))


if __name__ == "__main__":
    main()
