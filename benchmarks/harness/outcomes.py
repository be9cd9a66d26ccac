"""What became of the load generator's requests: rates, latencies, stages, failures."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """One request. Times are seconds of the machine's monotonic clock.

    Attributes:
        mix: what it carried.
        due_s: when it was to be sent.
        sent_s: when it was.
        ended_s: when its answer was read, or it failed.
        status: of the answer; 0 without one.
        code: of the error, or what is wrong with the rows where they are checked.
        items: in the request.
        tokens: of its texts, about.
        received_bytes: of the answer's body.
        stages: the answer's Server-Timing header.
        retry_after_s: what a refusal asks for.
    """

    mix: str
    due_s: float
    sent_s: float
    ended_s: float
    status: int
    code: str = ""
    items: int = 0
    tokens: int = 0
    received_bytes: int = 0
    stages: str = ""
    retry_after_s: float | None = None

    @property
    def is_right(self) -> bool:
        """Whether it was answered, and with the right rows where that is checked."""
        return self.status == 200 and not self.code

    @property
    def latency_s(self) -> float:
        """Seconds from when it was due to its end."""
        return self.ended_s - self.due_s

    @property
    def stages_ms(self) -> dict[str, float]:
        """The parts of its Server-Timing header."""
        parts = (part.strip().partition(";dur=") for part in self.stages.split(","))
        return {name: float(value.split(";")[0]) for name, _, value in parts if value}


def write(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write a line of JSON for each."""
    path.write_text("".join(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes))


def read(path: Path) -> list[Outcome]:
    """Read what `write` wrote."""
    return [Outcome(**json.loads(line)) for line in path.read_text().splitlines()]


def summary(outcomes: Sequence[Outcome], seconds: float, cpu_s: float) -> dict[str, Any]:
    """Return rates over the time of the run, latencies in milliseconds, and mean time by stage."""
    good = [outcome for outcome in outcomes if outcome.is_right]
    latencies_s = [outcome.latency_s for outcome in good]
    items = sum(outcome.items for outcome in good)
    return {
        "outcomes": dict(Counter(outcome.status for outcome in outcomes)),
        "requests_per_s": round(len(good) / seconds, 2),
        "items_per_s": round(items / seconds, 1),
        "bytes_per_item": round(sum(x.received_bytes for x in good) / max(1, items)),
        "mean_ms": round(1e3 * sum(latencies_s) / max(1, len(good)), 2),
        "p50_ms": in_ms(quantile(0.5, latencies_s)),
        "p95_ms": in_ms(quantile(0.95, latencies_s)),
        "p99_ms": in_ms(quantile(0.99, latencies_s)),
        "stages_ms": mean_stages_ms(good),
        "tokens_per_s": round(sum(x.tokens for x in good) / seconds, 1),
        "sent_late_p99_ms": in_ms(quantile(0.99, [x.sent_s - x.due_s for x in outcomes])),
        "generator_core_share": round(cpu_s / seconds, 3),
    }


def quantile(share: float, values: Sequence[float]) -> float | None:
    """Return the value below which a share of them lies; None of nothing."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else None


def in_ms(seconds: float | None) -> float | None:
    """Return milliseconds, rounded."""
    return None if seconds is None else round(1e3 * seconds, 2)


def mean_stages_ms(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Return the mean of each stage; one that a request does not have counts as 0."""
    total: defaultdict[str, float] = defaultdict(float)
    for outcome in outcomes:
        for name, value in outcome.stages_ms.items():
            total[name] += value
    return {name: round(value / len(outcomes), 3) for name, value in total.items()}


def tally(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Count outcomes by status and code."""
    return dict(Counter(f"{x.status} {x.code}".strip() for x in outcomes))


def seen_after(outcomes: Sequence[Outcome], fault_s: float) -> dict[str, Any]:
    """Return what callers saw from a moment on; seconds count from it."""
    after = [x for x in outcomes if x.ended_s >= fault_s]
    failed = [x for x in after if not x.is_right]
    right = [x for x in after if x.is_right]
    last_s = max((x.ended_s for x in after), default=fault_s)
    ends = [fault_s, *sorted(x.ended_s for x in right), last_s]
    longest_s, begin_s = max((late - early, early) for early, late in pairwise(ends))
    return {
        "asked": len(after),
        "failed": tally(failed),
        "last_failure_sent_s": round(max((x.sent_s for x in failed), default=fault_s) - fault_s, 1),
        "longest_gap_s": round(longest_s, 2),
        "gap_begins_s": round(begin_s - fault_s, 2),
        "slowest_answer_s": round(max((x.latency_s for x in right), default=0.0), 2),
    }
