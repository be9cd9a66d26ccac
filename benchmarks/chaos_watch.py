"""What benchmarks.chaos watches from outside: memory by process, and the Routers' retries."""

import re
import statistics
import threading
import time
from collections import Counter, defaultdict
from typing import Any

import httpx

from benchmarks.harness.processes import descendants

PERIOD_S = 5
WINDOW_S = 60
RETRIES = re.compile(r"^ray_jina_clip_retries_total\{(.*?)\} (\S+)$", re.MULTILINE)
TOWER = re.compile(r'tower="(\w+)"')
MIB = 1024 * 1024


class Watch:
    """Samples the processes below one until the block ends."""

    def __init__(self, ancestor: int) -> None:
        self._ancestor = ancestor
        self._samples: list[tuple[float, str, int, int]] = []
        self._retries: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(PERIOD_S):
            at_s = time.monotonic()
            for process in descendants(self._ancestor):
                if process.kind != "other":
                    sample = at_s, process.kind, process.pid, process.resident_bytes
                    self._samples.append(sample)
            self._count_retries()

    def _count_retries(self) -> None:
        """Keep the highest count of each Router, since a killed one's disappears."""
        import ray

        for node in ray.nodes():
            url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            try:
                page = httpx.get(url, timeout=5).text
            except httpx.HTTPError:
                continue
            for labels, value in RETRIES.findall(page):
                self._retries[labels] = max(self._retries.get(labels, 0.0), float(value))

    def retries(self) -> dict[str, int]:
        """Return the chunks sent once more, by tower."""
        total: Counter[str] = Counter()
        for labels, value in self._retries.items():
            found = TOWER.search(labels)
            total[found[1] if found else ""] += int(value)
        return dict(total)

    def memory_mib(self) -> dict[str, dict[str, Any]]:
        """Return, by kind, the median process in the first and the last minute.

        A process is also compared with itself, where one lived through both minutes.
        """
        first_s, last_s = self._samples[0][0] + WINDOW_S, self._samples[-1][0] - WINDOW_S
        kinds = sorted({kind for _, kind, _, _ in self._samples})
        result = {}
        for kind in kinds:
            early, late = self._by_process(kind, 0, first_s), self._by_process(kind, last_s)
            both = early.keys() & late.keys()
            growth = [round(late[pid] - early[pid]) for pid in both]
            result[kind] = {
                "first": round(statistics.median(early.values())) if early else None,
                "last": round(statistics.median(late.values())) if late else None,
                "growth of those alive in both": growth,
            }
        return result

    def _by_process(
        self, kind: str, begin_s: float, end_s: float = float("inf")
    ) -> dict[int, float]:
        held: defaultdict[int, list[float]] = defaultdict(list)
        for at_s, name, pid, size_bytes in self._samples:
            if name == kind and begin_s <= at_s <= end_s:
                held[pid].append(size_bytes / MIB)
        return {pid: statistics.median(values) for pid, values in held.items()}
