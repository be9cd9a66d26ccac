"""Which process of a running service used how much processor time."""

import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
KINDS = (
    ("Router", "embeddings:Router"),
    ("TextTower", "embeddings:TextTower"),
    ("VisionTower", "embeddings:VisionTower"),
    ("proxy", "ProxyActor"),
    ("proxy", "haproxy"),
    ("baseline", "benchmarks.baseline_server"),
)


def cpu_s(ancestor: int) -> dict[str, float]:
    """Return the processor seconds so far of a process's descendants, by kind."""
    stats = dict(filter(None, (_read(path) for path in Path("/proc").glob("[0-9]*"))))
    total: defaultdict[str, float] = defaultdict(float)
    for pid, (_, seconds, command) in stats.items():
        if _descends(pid, ancestor, stats):
            total[_kind(command)] += seconds
    return total


def _descends(pid: int, ancestor: int, stats: Mapping[int, tuple[int, float, str]]) -> bool:
    while pid in stats and pid != ancestor:
        pid = stats[pid][0]
    return pid == ancestor


def _read(path: Path) -> tuple[int, tuple[int, float, str]] | None:
    """Return pid, parent, seconds and command of a process; None if it has just ended."""
    try:
        fields = (path / "stat").read_text().rsplit(")", 1)[1].split()
        command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return None
    seconds = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    return int(path.name), (int(fields[1]), seconds, command)


def _kind(command: str) -> str:
    return next((kind for kind, mark in KINDS if mark in command), "Ray's own")
