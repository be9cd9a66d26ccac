"""How far a job is and how fast; and the summary at its end."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from deployments.bulk.columns import STAGES

TIMED = (*STAGES, "write")


@dataclass(frozen=True)
class Summary:
    """What a finished job did; counts are of this run, but for the totals.

    Attributes:
        output: where the vectors are.
        total_rows: rows of the output.
        total_errors: rows of the output with an error.
        total_blocks: files of the output.
        resumed_blocks: of them, finished by earlier runs.
        rows: rows of this run.
        taken_rows: of them, those whose vectors were copied from an older output.
        tokens: tokens of this run.
        images: images embedded in this run.
        seconds: wall time of this run, starting actors included.
        first_block_s: of them, until the first block was written.
        first_block_rows: rows of that block.
        rows_per_s: rows over seconds; likewise the others.
        tokens_per_s: tokens over seconds.
        images_per_s: images over seconds.
        stage_s: seconds that all workers of a stage were at work, by stage.
        lost: files of the input whose rows are not in the output, or not all, and why.
        missing_rows: rows that a database does not hold: without an id, or with one that another
            row of the job has too.
    """

    output: str
    total_rows: int
    total_errors: int
    total_blocks: int
    resumed_blocks: int
    rows: int
    taken_rows: int
    tokens: int
    images: int
    seconds: float
    first_block_s: float
    first_block_rows: int
    rows_per_s: float
    tokens_per_s: float
    images_per_s: float
    stage_s: dict[str, float] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    missing_rows: int = 0


class JobProgress:
    """Adds up finished blocks.

    Args:
        total_rows: rows of the whole job.
        resumed_rows: of them, finished by earlier runs.
        errors: rows with errors among those.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        total_rows: int,
        resumed_rows: int = 0,
        errors: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_rows = total_rows
        self.resumed_rows = resumed_rows
        self.errors = errors
        self.rows = self.taken_rows = self.tokens = self.images = 0
        self._stage_s = dict.fromkeys(TIMED, 0.0)
        self._clock = clock
        self._start_s = clock()
        self._first: tuple[float, int] | None = None

    def add(self, figures: Mapping[str, float]) -> None:
        """Count one written block."""
        self.rows += int(figures["rows"])
        self.taken_rows += int(figures["taken"])
        self.tokens += int(figures["tokens"])
        self.images += int(figures["images"])
        self.errors += int(figures["errors"])
        for stage in TIMED:
            self._stage_s[stage] += figures[f"{stage}_s"]
        if self._first is None:
            self._first = (self._clock(), self.rows)

    @property
    def done_rows(self) -> int:
        """Rows that are written, by this run and earlier ones."""
        return self.resumed_rows + self.rows

    def per_s(self, amount: float) -> float:
        """Return an amount over this run's time."""
        return amount / max(self._clock() - self._start_s, 1e-9)

    def left_s(self) -> float | None:
        """Return the seconds that the rest takes at the pace since the first block, if known."""
        if self._first is None:
            return None
        since_s, before = self._clock() - self._first[0], self._first[1]
        if self.rows == before:
            return None
        return (self.total_rows - self.done_rows) * since_s / (self.rows - before)

    def line(self) -> str:
        """Return one line for a terminal or a log."""
        left_s = self.left_s()
        left = "" if left_s is None else f", {duration(left_s)} left"
        return (
            f"{self.done_rows:,} of {self.total_rows:,} rows, {self.per_s(self.rows):,.0f} rows/s, "
            f"{self.per_s(self.tokens):,.0f} tokens/s, {self.per_s(self.images):,.1f} images/s, "
            f"{self.errors:,} errors{left}"
        )

    def summary(
        self,
        output: str,
        blocks: int,
        resumed_blocks: int,
        lost: Mapping[str, str],
        missing_rows: int = 0,
    ) -> Summary:
        """Return the figures of the job so far."""
        return Summary(
            output=output,
            total_rows=self.done_rows,
            total_errors=self.errors,
            total_blocks=blocks,
            resumed_blocks=resumed_blocks,
            rows=self.rows,
            taken_rows=self.taken_rows,
            tokens=self.tokens,
            images=self.images,
            seconds=self._clock() - self._start_s,
            first_block_s=self._first[0] - self._start_s if self._first else 0.0,
            first_block_rows=self._first[1] if self._first else 0,
            rows_per_s=self.per_s(self.rows),
            tokens_per_s=self.per_s(self.tokens),
            images_per_s=self.per_s(self.images),
            stage_s={name: round(value, 3) for name, value in self._stage_s.items()},
            lost=dict(lost),
            missing_rows=missing_rows,
        )


def duration(seconds: float) -> str:
    """Return a time as 1:02:03, 2:03 or 3 s."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
