"""Traffic to plan for: texts and images over the same time, as a recorded trace has them."""

import csv
import gzip
import math
import zlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from deployments.plan.load import Load


@dataclass(frozen=True, slots=True)
class Traffic:
    """Text and vision load over the same time."""

    name: str
    text: Load
    vision: Load

    @property
    def duration_s(self) -> float:
        """How long the traffic lasts."""
        return self.text.duration_s


def read_trace(path: Path, scale: float = 1.0) -> Traffic:
    """Read a CSV of `time, tokens, images`, or the Azure trace's own columns; `.gz` as well.

    A row is a request: one text of so many tokens, and so many images. Times are seconds or ISO
    8601. Columns may be missing: no images, or no tokens.

    Raises:
        ValueError: no time column, neither tokens nor images, or a cell that is not a number.
    """
    try:
        table = _table(path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from error
    if not table:
        raise ValueError(f"{path} has no rows")
    time_s, num_tokens, num_images = np.array(table, dtype=np.float64).T
    time_s -= time_s.min()
    end_s = float(time_s.max())
    text = Load.of(time_s, num_tokens, np.ones_like(num_tokens), end_s)
    vision = Load.of(time_s, num_images, num_images, end_s)
    return Traffic(path.name, text.scaled(scale), vision.scaled(scale))


def _table(path: Path) -> list[tuple[float, float, float]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", newline="") as file:
        rows = csv.DictReader(file)
        columns = {name.strip().lower(): name for name in rows.fieldnames or ()}
        time = columns.get("time") or columns.get("timestamp")
        tokens = columns.get("tokens") or columns.get("contexttokens")
        images = columns.get("images") or columns.get("numimages")
        if time is None or (tokens is None and images is None):
            raise ValueError(
                f"{path}: the columns {', '.join(columns) or '(none)'} are not "
                "time (or TIMESTAMP) with tokens (or ContextTokens) or images (or NumImages)"
            )
        return [(_seconds(row[time]), _cell(row, tokens), _cell(row, images)) for row in rows]


def _cell(row: dict[str, str], column: str | None) -> float:
    value = float(row[column] or 0) if column else 0.0
    if not 0 <= value < math.inf:
        raise ValueError(f"{column} is {value:g} in {row}; it must not be negative, and finite")
    return value


def _seconds(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        # Azure writes seven decimals; datetime takes six.
        return datetime.fromisoformat(value.strip()[:26]).timestamp()
