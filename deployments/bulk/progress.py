"""How far a job is and how fast; at its end, what it did."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from deployments.bulk.columns import STAGES

TIMED = (*STAGES, "write")


@dataclass
class JobProgress:
    """Adds up finished blocks. Counts are of this run, but for the totals.

    Attributes:
        output: where the vectors are.
        all_rows: rows of the whole job.
        total_blocks: blocks of the whole job.
        resumed_blocks: of them, finished by earlier runs.
        total_rows: rows that are written.
        total_errors: of them, those with an error.
        lost: files of the input whose rows are not in the output, or not all, and why.
        taken_rows: rows whose vectors were copied from an older output.
        stage_s: seconds that all workers of a stage were at work, by stage.
        first_block_s: wall time until the first block was written, starting actors included.
        missing_rows: rows that a database does not hold: without an id, or with one that another
            row of the job has too.
        clock: monotonic seconds.
    """

    output: str
    all_rows: int
    total_blocks: int
    resumed_blocks: int = 0
    total_rows: int = 0
    total_errors: int = 0
    lost: Mapping[str, str] = field(default_factory=dict)
    rows: int = 0
    taken_rows: int = 0
    tokens: int = 0
    images: int = 0
    stage_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TIMED, 0.0))
    first_block_s: float = 0.0
    first_block_rows: int = 0
    missing_rows: int = 0
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._start_s = self.clock()

    @property
    def seconds(self) -> float:
        """Wall time of this run."""
        return max(self.clock() - self._start_s, 1e-9)

    def add(self, figures: Mapping[str, float]) -> None:
        """Count one written block."""
        self.rows += int(figures["rows"])
        self.total_rows += int(figures["rows"])
        self.taken_rows += int(figures.get("taken", 0))
        self.tokens += int(figures.get("tokens", 0))
        self.images += int(figures["images"])
        self.total_errors += int(figures["errors"])
        for stage in TIMED:
            self.stage_s[stage] += figures.get(f"{stage}_s", 0.0)
        if not self.first_block_rows:
            self.first_block_s, self.first_block_rows = self.seconds, self.rows

    def left_s(self) -> float | None:
        """Return the seconds that the rest takes at the pace since the first block, if known."""
        rows = self.rows - self.first_block_rows
        if not rows:
            return None
        return (self.all_rows - self.total_rows) * (self.seconds - self.first_block_s) / rows

    def line(self) -> str:
        """Return one line for a terminal or a log."""
        left_s, seconds = self.left_s(), self.seconds
        left = "" if left_s is None else f", {duration(left_s)} left"
        return (
            f"{self.total_rows:,} of {self.all_rows:,} rows, {self.rows / seconds:,.0f} rows/s, "
            f"{self.tokens / seconds:,.0f} tokens/s, {self.images / seconds:,.1f} images/s, "
            f"{self.total_errors:,} errors{left}"
        )

    def summary(self) -> dict[str, Any]:
        """Return the figures so far, and rates over the time of this run."""
        found, seconds = asdict(self), self.seconds
        del found["clock"], found["all_rows"]
        found["stage_s"] = {name: round(value, 3) for name, value in self.stage_s.items()}
        rates = {f"{x}_per_s": found[x] / seconds for x in ("rows", "tokens", "images")}
        return found | {"seconds": seconds} | rates


def duration(seconds: float) -> str:
    """Return a time as 1:02:03, 2:03 or 3 s."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
