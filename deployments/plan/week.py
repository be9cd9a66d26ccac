"""A generated week of texts and images.

It follows the published plots of the Azure LMM inference trace 2025 ("ModServe", SoCC 2025):
a floor of small image requests, and four episodes in which the images per minute grow tenfold
and more while the requests per minute hardly move.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from deployments.plan.load import MAX_ROWS, Floats, Load, check_number
from deployments.plan.traffic import Traffic

MINUTE_S = 60.0
DAY_S = 86_400.0
WEEK_S = 7 * DAY_S
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


def generate_week(scale: float = 1.0, seed: int = 0) -> Traffic:
    """Draw a week of the published shape; `scale` multiplies the users, not their requests."""
    rng = np.random.default_rng(seed)
    minutes = round(WEEK_S / MINUTE_S)
    rate = image_rate(rng, minutes)
    large = large_share(rng, rate)

    def texts(arrival_s: Floats) -> tuple[Floats, Floats]:
        return draw_tokens(rng, len(arrival_s)), np.ones(len(arrival_s))

    def images(arrival_s: Floats) -> tuple[Floats, Floats]:
        minute = (arrival_s // MINUTE_S).astype(np.int64)
        count = draw_images(rng, rng.random(len(arrival_s)) < large[minute])
        return count, count

    return Traffic(
        f"generated week, seed {seed}",
        _drawn(rng, text_rate(rng, minutes), scale, texts),
        _drawn(rng, rate, scale, images),
    )


def _drawn(
    rng: np.random.Generator,
    per_minute: Floats,
    scale: float,
    draw: Callable[[Floats], tuple[Floats, Floats]],
) -> Load:
    """Draw arrivals, then what each costs and its items; in parts where they are many."""
    check_number(float(per_minute.sum()), scale)
    end_s = len(per_minute) * MINUTE_S
    num_parts = max(math.ceil(per_minute.sum() * scale / MAX_ROWS), 1)

    def parts() -> Iterator[Load]:
        for minutes in np.array_split(np.arange(len(per_minute)), num_parts):
            arrival_s = minutes[0] * MINUTE_S + _arrivals(rng, per_minute[minutes] * scale)
            yield Load.of(arrival_s, *draw(arrival_s), end_s)

    return next(parts()) if num_parts == 1 else Load.merged(parts(), end_s)


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
