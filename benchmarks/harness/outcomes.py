"""What became of a load generator's requests: rates, latencies, stages, and whether it kept up."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """One request: how it ended, how long it took, what it carried, where its time went.

    `late_s` is how long after it was due the generator sent it.
    """

    status: int
    late_s: float
    latency_s: float
    items: int
    tokens: int
    received_bytes: int
    stages: str


def summary(outcomes: Sequence[Outcome], seconds: float, cpu_s: float) -> dict[str, Any]:
    """Return rates over the time of the run, latencies in milliseconds, and mean time by stage."""
    good = [outcome for outcome in outcomes if outcome.status == 200]
    latencies = sorted(outcome.latency_s for outcome in good)
    items = sum(outcome.items for outcome in good)
    return {
        "outcomes": dict(Counter(outcome.status for outcome in outcomes)),
        "requests_per_s": round(len(good) / seconds, 2),
        "items_per_s": round(items / seconds, 1),
        "bytes_per_item": round(sum(x.received_bytes for x in good) / max(1, items)),
        "mean_ms": round(1e3 * sum(latencies) / max(1, len(latencies)), 2),
        "p50_ms": _at(0.5, latencies),
        "p95_ms": _at(0.95, latencies),
        "p99_ms": _at(0.99, latencies),
        "stages_ms": mean_stages([outcome.stages for outcome in good]),
        "tokens_per_s": round(sum(x.tokens for x in good) / seconds, 1),
        "sent_late_p99_ms": _at(0.99, sorted(x.late_s for x in outcomes)),
        "generator_core_share": round(cpu_s / seconds, 3),
    }


def _at(share: float, ordered_s: Sequence[float]) -> float | None:
    """Return a quantile in milliseconds, None of nothing."""
    if not ordered_s:
        return None
    return round(1e3 * ordered_s[min(int(share * len(ordered_s)), len(ordered_s) - 1)], 2)


def mean_stages(headers: Sequence[str]) -> dict[str, float]:
    """Return the mean of each stage of the Server-Timing headers, in milliseconds."""
    totals: defaultdict[str, float] = defaultdict(float)
    for header in headers:
        for part in header.split(","):
            name, _, duration = part.strip().partition(";dur=")
            if duration:
                totals[name] += float(duration.split(";")[0])
    return {name: round(total / max(1, len(headers)), 3) for name, total in totals.items()}
