"""The processes below one process: what they do for the service, what they use, how to end them."""

import signal
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress

import psutil

KINDS = (
    ("Router", "ray::ServeReplica:embeddings:Router"),
    ("TextTower", "ray::ServeReplica:embeddings:TextTower"),
    ("VisionTower", "ray::ServeReplica:embeddings:VisionTower"),
    ("controller", "ray::ServeController"),
    ("HAProxy manager", "ray::HAProxyManager"),
    ("proxy", "ray::ProxyActor"),
    ("haproxy", "/haproxy -db"),
    ("raylet", "/raylet --"),
    ("gcs", "/gcs_server --"),
    ("agents", "ray::DashboardAgent"),
    ("agents", "ray::RuntimeEnvAgent"),
    ("log monitor", "/ray/_private/log_monitor.py"),
    ("autoscaler's monitor", "/ray/autoscaler/_private/monitor.py"),
    ("dashboard", "/ray/dashboard/dashboard.py"),
    ("idle workers", "ray::IDLE"),
    ("baseline", "benchmarks.harness.baseline_server"),
)
OTHER = "other"
REPLICAS = ("Router", "TextTower", "VisionTower")


def descendants(ancestor: int) -> list[psutil.Process]:
    """Return the living processes below a process, oldest first."""
    with suppress(psutil.NoSuchProcess):
        below = psutil.Process(ancestor).children(recursive=True)
        return sorted(filter(is_alive, below), key=lambda process: process.pid)
    return []


def of_kind(ancestor: int, *kinds: str) -> list[psutil.Process]:
    """Return those below a process that do something of these kinds for the service."""
    return [process for process in descendants(ancestor) if kind(process) in kinds]


def kind(process: psutil.Process) -> str:
    """Return what a process does for the service."""
    line = command(process)
    return next((name for name, mark in KINDS if mark in line), OTHER)


def command(process: psutil.Process) -> str:
    """Return a process's command; empty if it has ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def is_alive(process: psutil.Process) -> bool:
    """Tell whether it still runs; another process with its number does not count."""
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def resident_bytes(processes: Iterable[psutil.Process]) -> int:
    """Return the memory of processes; what they share counts for each, an ended one not at all."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            total += process.memory_info().rss
    return total


def proportional_bytes(processes: Iterable[psutil.Process]) -> int:
    """Return the memory of processes; what they share is split among them (slow: milliseconds)."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total


def cpu_s(ancestor: int) -> dict[str, float]:
    """Return the processor seconds so far of the processes below one, by kind."""
    total: defaultdict[str, float] = defaultdict(float)
    for process in descendants(ancestor):
        with suppress(psutil.Error):
            times = process.cpu_times()
            total[kind(process)] += times.user + times.system
    return total


def signal_tree(root: int, number: signal.Signals) -> list[psutil.Process]:
    """Send a signal to a process and everything below it, as when a whole machine is lost.

    Returns:
        The processes that were there.
    """
    tree = [psutil.Process(root), *descendants(root)] if psutil.pid_exists(root) else []
    for process in tree:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    return tree
