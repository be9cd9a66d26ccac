"""The processes below one process: which they are, what they use, and how to kill one."""

import os
import signal
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
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
    ("baseline", "benchmarks.harness.baseline_server"),
)


@dataclass(frozen=True)
class Process:
    """A process as it was found."""

    pid: int
    parent: int
    command: str
    resident_bytes: int
    cpu_s: float

    @property
    def kind(self) -> str:
        """What it does for the service; `other` for Ray's idle workers and agents."""
        return next((kind for kind, mark in KINDS if mark in self.command), "other")

    @property
    def pss_bytes(self) -> int:
        """Its memory, with its share of what it has in common with others; 0 if it has ended."""
        with suppress(OSError):
            lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        return 0

    def is_alive(self) -> bool:
        """Whether it still runs; another process with its number does not count."""
        now = _read(Path(f"/proc/{self.pid}"))
        return now is not None and now.command == self.command

    def kill(self) -> None:
        """End it at once, as a crash or the kernel's memory killer would."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def descendants(ancestor: int) -> list[Process]:
    """Return the living processes below a process, oldest first."""
    found = {process.pid: process for process in map(_read, _folders()) if process is not None}

    def below(pid: int) -> bool:
        while pid in found and pid != ancestor:
            pid = found[pid].parent
        return pid == ancestor

    return [x for pid, x in sorted(found.items()) if pid != ancestor and below(pid)]


def of_kind(ancestor: int, kind: str) -> list[Process]:
    """Return those of one kind."""
    return [process for process in descendants(ancestor) if process.kind == kind]


def cpu_s(ancestor: int) -> dict[str, float]:
    """Return the processor seconds so far of the processes below one, by kind."""
    total: defaultdict[str, float] = defaultdict(float)
    for process in descendants(ancestor):
        total[process.kind] += process.cpu_s
    return total


def signal_tree(root: int, number: signal.Signals) -> list[Process]:
    """Send a signal to a process and everything below it, as when a whole machine is lost.

    Returns:
        The processes that were there.
    """
    tree = [*filter(None, [_read(Path(f"/proc/{root}"))]), *descendants(root)]
    for process in tree:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
    return tree


def _folders() -> list[Path]:
    return sorted(Path("/proc").glob("[0-9]*"))


def _read(folder: Path) -> Process | None:
    """Return the process of a folder of /proc; None if it has ended."""
    try:
        fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        pages = int((folder / "statm").read_text().split()[1])
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return None
    if fields[0] == "Z":
        return None
    cpu_s = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    return Process(int(folder.name), int(fields[1]), command, pages * PAGE_BYTES, cpu_s)
