"""A generated day of bursts from idle: nothing, then much at once, again and again.

Each seed is another service: its bursts last from seconds to an hour, and come back after a minute
to hours. Within one, times vary by a lognormal, and heights by a Pareto law with a heavy tail, as
single clients' do in "ServeGen" (NSDI 2026).
"""

import math
from collections.abc import Callable

import numpy as np

from deployments.plan.load import MAX_ROWS, Floats, Load, check_number
from deployments.plan.traffic import Traffic
from deployments.plan.week import DAY_S, draw_images, draw_tokens

ON_S, OFF_S = (15.0, 1800.0), (60.0, 5400.0)
"""Medians of a service, from the shortest to the longest."""
SPREAD = 0.8
HEIGHT_EXPONENT, HIGHEST = 1.6, 12.0
"""Of the Pareto law, and the highest burst over the lowest."""
TEXTS_PER_S, IMAGE_REQUESTS_PER_S = 40.0, 4.0
"""In the lowest burst."""


def generate_bursts(scale: float = 1.0, seed: int = 0) -> Traffic:
    """Draw a day of bursts; `scale` multiplies their heights."""
    rng = np.random.default_rng(seed)

    def texts(count: int) -> tuple[Floats, Floats]:
        return draw_tokens(rng, count), np.ones(count)

    def images(count: int) -> tuple[Floats, Floats]:
        drawn = draw_images(rng, np.zeros(count, np.bool_))
        return drawn, drawn

    return Traffic(
        f"generated bursts, seed {seed}",
        _drawn(rng, TEXTS_PER_S * scale, scale, texts),
        _drawn(rng, IMAGE_REQUESTS_PER_S * scale, scale, images),
    )


def _drawn(
    rng: np.random.Generator,
    lowest_per_s: float,
    scale: float,
    draw: Callable[[int], tuple[Floats, Floats]],
) -> Load:
    start_s, end_s, height = _bursts(rng)
    mean = (end_s - start_s) * height * lowest_per_s
    check_number(float(mean.sum()) / scale, scale)
    counts = rng.poisson(mean)
    parts = []
    for some in np.array_split(np.arange(len(counts)), math.ceil(counts.sum() / MAX_ROWS)):
        drawn = np.repeat(some, counts[some])
        arrival_s = rng.uniform(start_s[drawn], end_s[drawn])
        parts.append(Load.of(arrival_s, *draw(len(drawn)), DAY_S))
    return parts[0] if len(parts) == 1 else Load.merged(parts, DAY_S)


def _bursts(rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """Return when each burst begins and ends, and its height over the lowest."""
    on_s, off_s = (math.exp(rng.uniform(*np.log(span))) for span in (ON_S, OFF_S))
    count = math.ceil(4 * DAY_S / (on_s + off_s)) + 10
    lasts = on_s * rng.lognormal(0, SPREAD, count)
    begins = np.cumsum(off_s * rng.lognormal(0, SPREAD, count) + np.append(0, lasts[:-1]))
    within = begins < DAY_S
    height = np.minimum((1 - rng.random(count)) ** (-1 / HEIGHT_EXPONENT), HIGHEST)
    return begins[within], np.minimum(begins + lasts, DAY_S)[within], height[within]
