"""Traffic to plan for: a recorded trace, or a generated week of texts and images.

The week follows the published plots of the Azure LMM inference trace 2025 ("ModServe", SoCC 2025):
a floor of small image requests, and four episodes in which the images per minute grow tenfold
and more while the requests per minute hardly move.
"""

import csv
import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MINUTE_S = 60.0
DAY_S = 86_400.0
WEEK_S = 7 * DAY_S
COPY_JITTER_S = 10.0
NUM_EPISODES = 4
NUM_SPIKES = 20

# Of image requests: the share with fewer than so many images. The last is the largest seen.
IMAGE_COUNTS = (1, 2, 5, 10, 26, 101, 301, 9001)
IMAGE_SHARES = (0.66, 0.05, 0.15, 0.06, 0.02, 0.02, 0.04)
NUM_SMALL_BINS = 5
"""Requests of up to 100 images come all week; larger ones only in an episode."""
LARGE_EXPONENT = 2.5
"""Pareto tail above 300 images: the exponent that puts the largest of 40,000 near 9,000."""
TOKEN_QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)
TOKENS = (5.0, 750.0, 3_500.0, 10_000.0, 32_000.0)


@dataclass(frozen=True, slots=True)
class Load:
    """What one tower has to do, in order of arrival.

    Attributes:
        arrival_s: float64 [requests], seconds from the beginning.
        cost: float64 [requests], tokens or images.
        items: float64 [requests], how many embeddings each asks for.
        duration_s: how long the traffic lasts.
    """

    arrival_s: Floats
    cost: Floats
    items: Floats
    duration_s: float

    @classmethod
    def of(cls, arrival_s: Floats, cost: Floats, items: Floats, duration_s: float) -> "Load":
        """Sort by arrival and leave out what costs nothing."""
        order = np.argsort(arrival_s, kind="stable")
        order = order[cost[order] > 0]
        return cls(arrival_s[order], cost[order], items[order], duration_s)

    def scaled(self, scale: float, seed: int = 0) -> "Load":
        """Return `scale` times the traffic: copies of each request, moved a few seconds apart.

        A copy is moved by up to 10 s either way, so that bursts longer than that keep their shape.
        """
        if scale == 1:
            return self
        rng = np.random.default_rng(seed)
        copies = rng.multinomial(1, [1 - scale % 1, scale % 1], len(self.cost))[:, 1] + int(scale)
        index = np.repeat(np.arange(len(self.cost)), copies)
        moved = self.arrival_s[index] + rng.uniform(-COPY_JITTER_S, COPY_JITTER_S, len(index))
        moved = np.clip(moved, 0, self.duration_s)
        return Load.of(moved, self.cost[index], self.items[index], self.duration_s)

    def warmed_up(self, warm_up_s: float) -> "Load":
        """Put the mirrored beginning in front, at negative times, so that no run starts cold."""
        early = int(np.searchsorted(self.arrival_s, warm_up_s))
        return Load(
            np.concatenate([-self.arrival_s[:early][::-1], self.arrival_s]),
            np.concatenate([self.cost[:early][::-1], self.cost]),
            np.concatenate([self.items[:early][::-1], self.items]),
            self.duration_s,
        )


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
    """Read a CSV of `time, tokens, images`, or the Azure trace's own columns.

    A row is a request: one text of so many tokens, and so many images. Times are seconds or ISO
    8601. Columns may be missing: no images, or no tokens.

    Raises:
        ValueError: no time column, neither tokens nor images, or a cell that is not a number.
    """
    with path.open(newline="") as file:
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
        table = [(_seconds(row[time]), _cell(row, tokens), _cell(row, images)) for row in rows]
    if not table:
        raise ValueError(f"{path} has no rows")
    time_s, num_tokens, num_images = np.array(table, dtype=np.float64).T
    time_s -= time_s.min()
    end_s = float(time_s.max())
    text = Load.of(time_s, num_tokens, np.ones_like(num_tokens), end_s)
    vision = Load.of(time_s, num_images, num_images, end_s)
    return Traffic(path.name, text.scaled(scale), vision.scaled(scale))


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


def generate_week(scale: float = 1.0, seed: int = 0) -> Traffic:
    """Draw a week of the published shape; `scale` multiplies the users, not their requests."""
    rng = np.random.default_rng(seed)
    minutes = round(WEEK_S / MINUTE_S)
    text_s = _arrivals(rng, text_rate(rng, minutes) * scale)
    tokens = draw_tokens(rng, len(text_s))
    rate = image_rate(rng, minutes)
    image_s = _arrivals(rng, rate * scale)
    large = large_share(rng, rate)[(image_s // MINUTE_S).astype(np.int64)]
    images = draw_images(rng, rng.random(len(image_s)) < large)
    return Traffic(
        f"generated week, seed {seed}",
        Load.of(text_s, tokens, np.ones_like(tokens), WEEK_S),
        Load.of(image_s, images, images, WEEK_S),
    )


def text_rate(rng: np.random.Generator, minutes: int) -> Floats:
    """Return text requests in each minute: 50 to 150, drifting with the day."""
    day = np.sin(2 * np.pi * np.arange(minutes) * MINUTE_S / DAY_S)
    rate: Floats = np.clip(100 + 42 * day + 4 * _wander(rng, minutes, 30), 50, 150)
    return rate


def image_rate(rng: np.random.Generator, minutes: int) -> Floats:
    """Return image requests in each minute: 20 to 200, noisy, with spikes to 450."""
    day = np.sin(2 * np.pi * (np.arange(minutes) * MINUTE_S / DAY_S - 0.1))
    rate: Floats = np.clip(100 * np.exp(0.2 * day + 0.3 * _wander(rng, minutes, 4)), 20, 200)
    for start in rng.integers(0, minutes, NUM_SPIKES):
        rate[start : start + rng.integers(1, 4)] = rng.uniform(250, 450)
    return rate


def large_share(rng: np.random.Generator, rate: Floats) -> Floats:
    """Return the share of image requests above 100 images in each minute: none but in episodes.

    Four episodes of 4 to 12 hours, reached within 1 to 5 minutes, sized so that the week has the
    published share. Large requests keep their own pace when the request rate spikes.
    """
    minutes = len(rate)
    level = np.zeros(minutes)
    for number in range(NUM_EPISODES):
        hours = rng.uniform(4, 12)
        start = (number + rng.uniform(0.05, 0.45)) * minutes / NUM_EPISODES
        ramp = rng.uniform(1, 5)
        since = np.arange(minutes) - start
        rise = np.clip(np.minimum(since / ramp, (hours * 60 - since) / ramp), 0, 1)
        level += rise * rng.uniform(0.75, 1.3)
    level *= np.exp(0.15 * _wander(rng, minutes, 60))
    total = sum(IMAGE_SHARES[NUM_SMALL_BINS:]) * rate.sum()
    large: Floats = np.clip(level * total / level.sum() / rate, 0, 1)
    return large


def draw_images(rng: np.random.Generator, large: NDArray[np.bool_]) -> Floats:
    """Draw each request's number of images, from the small or from the large part."""
    shares, counts = np.array(IMAGE_SHARES), np.zeros(len(large))
    bins = np.arange(len(shares))
    for part, chosen in ((~large, bins[:NUM_SMALL_BINS]), (large, bins[NUM_SMALL_BINS:])):
        weights = shares[chosen] / shares[chosen].sum()
        counts[part] = _within(rng, rng.choice(chosen, int(part.sum()), p=weights))
    return counts


def _within(rng: np.random.Generator, chosen: NDArray[np.int64]) -> Floats:
    low = np.array(IMAGE_COUNTS, dtype=np.float64)[chosen]
    high = np.array(IMAGE_COUNTS, dtype=np.float64)[chosen + 1]
    uniform = rng.random(len(chosen))
    even = low * (high / low) ** uniform
    tail = low * (1 - uniform * (1 - (low / high) ** LARGE_EXPONENT)) ** (-1 / LARGE_EXPONENT)
    counts: Floats = np.floor(np.where(chosen == len(IMAGE_SHARES) - 1, tail, even))
    return counts


def draw_tokens(rng: np.random.Generator, count: int) -> Floats:
    """Draw text lengths through the published percentiles, log-linear between them."""
    log_tokens = np.interp(rng.random(count), TOKEN_QUANTILES, np.log(TOKENS))
    tokens: Floats = np.ceil(np.exp(log_tokens))
    return tokens


def _arrivals(rng: np.random.Generator, per_minute: Floats) -> Floats:
    counts = rng.poisson(per_minute)
    start_s = np.repeat(np.arange(len(counts)) * MINUTE_S, counts)
    return np.sort(start_s + rng.uniform(0, MINUTE_S, len(start_s)))


def _wander(rng: np.random.Generator, minutes: int, memory: float) -> Floats:
    """Noise of unit variance that forgets within `memory` minutes."""
    keep = np.exp(-1 / memory)
    value, values = float(rng.standard_normal()), np.empty(minutes)
    for minute, step in enumerate(rng.standard_normal(minutes) * np.sqrt(1 - keep**2)):
        value = keep * value + step
        values[minute] = value
    return values
