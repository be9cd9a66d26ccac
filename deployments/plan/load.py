"""What one tower has to do: requests in order of arrival, or for much traffic, cells of them.

Memory does not grow with the traffic: above `MAX_ROWS` requests, those that arrive in the same
quarter of a second and cost about the same become one row.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STEPS_PER_S = 4
COPY_JITTER_S = 10.0
CLASSES_PER_OCTAVE = 2
MAX_ROWS = 3_000_000
MAX_REQUESTS = 1_000_000_000
"""Drawing so many takes a few minutes."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one tower has to do, in order of arrival. A row is a request, or several alike.

    Attributes:
        arrival_s: float64 [rows], seconds from the beginning.
        cost: float64 [rows], tokens or images.
        items: float64 [rows], how many embeddings are asked for.
        duration_s: how long the traffic lasts.
        number: float64 [rows], requests in the row.
    """

    arrival_s: Floats
    cost: Floats
    items: Floats
    duration_s: float
    number: Floats

    @classmethod
    def of(
        cls,
        arrival_s: Floats,
        cost: Floats,
        items: Floats,
        duration_s: float,
        number: Floats | None = None,
    ) -> "Load":
        """Sort by arrival and leave out what costs nothing."""
        order = np.argsort(arrival_s, kind="stable")
        order = order[cost[order] > 0]
        number = np.ones(len(order)) if number is None else number[order]
        return cls(arrival_s[order], cost[order], items[order], duration_s, number)

    @classmethod
    def merged(cls, parts: Iterable["Load"], duration_s: float) -> "Load":
        """Join loads, each as the cells it consists of."""
        rows = [(x.arrival_s, x.cost, x.items, x.number) for x in map(Load.in_cells, parts)]
        arrival_s, cost, items, number = (
            np.concatenate(column) for column in zip(*rows, strict=True)
        )
        # Again: the parts overlap by what copies are moved.
        return cls.of(arrival_s, cost, items, duration_s, number).in_cells()

    def in_cells(self) -> "Load":
        """Return the requests of each quarter of a second and class of cost as one row."""
        if not len(self.cost):
            return self
        step = np.floor(self.arrival_s * STEPS_PER_S).astype(np.int64)
        size = np.floor(np.log2(self.cost / self.number) * CLASSES_PER_OCTAVE).astype(np.int64)
        first, smallest = int(step.min()), int(size.min())
        cell = (step - first) * (int(size.max()) - smallest + 1) + size - smallest
        filled = np.flatnonzero(np.bincount(cell))
        arrival_s, cost, items, number = (
            np.bincount(cell, values)[filled].astype(np.float64)
            for values in (self.arrival_s * self.number, self.cost, self.items, self.number)
        )
        return Load.of(arrival_s / number, cost, items, self.duration_s, number)

    @property
    def num_requests(self) -> int:
        """How many requests the rows stand for."""
        return round(float(self.number.sum()))

    def scaled(self, scale: float, seed: int = 0) -> "Load":
        """Return `scale` times the traffic: copies of each request, moved a few seconds apart.

        A copy is moved by up to 10 s either way, so that bursts longer than that keep their shape.

        Raises:
            ValueError: more requests than can be drawn in a few minutes.
        """
        if scale == 1 or not len(self.cost):
            return self
        check_number(self.num_requests, scale)
        parts = self._copies(scale, np.random.default_rng(seed))
        if self.num_requests * scale <= MAX_ROWS:
            (all_of_it,) = parts
            return Load.of(all_of_it.arrival_s, all_of_it.cost, all_of_it.items, self.duration_s)
        return Load.merged(parts, self.duration_s)

    def _copies(self, scale: float, rng: np.random.Generator) -> Iterator["Load"]:
        """Yield the copies in parts, each in no order."""
        rows = max(int(MAX_ROWS / scale), 1)
        for first in range(0, len(self.cost), rows):
            part = slice(first, first + rows)
            copies = rng.random(len(self.cost[part])) < scale % 1
            index = first + np.repeat(np.arange(len(copies)), copies + int(scale))
            moved = self.arrival_s[index] + rng.uniform(-COPY_JITTER_S, COPY_JITTER_S, len(index))
            moved = np.clip(moved, 0, self.duration_s)
            number = np.ones(len(index))
            yield Load(moved, self.cost[index], self.items[index], self.duration_s, number)

    def warmed_up(self, warm_up_s: float) -> "Load":
        """Put the mirrored beginning in front, at negative times, so that no run starts cold."""
        early = int(np.searchsorted(self.arrival_s, warm_up_s))
        cost, items, number = (
            np.concatenate([values[:early][::-1], values])
            for values in (self.cost, self.items, self.number)
        )
        arrival_s = np.concatenate([-self.arrival_s[:early][::-1], self.arrival_s])
        return Load(arrival_s, cost, items, self.duration_s, number)


def check_number(num_requests: float, scale: float) -> None:
    """Raise ValueError where so many requests times `scale` are too many to draw."""
    if num_requests * scale > MAX_REQUESTS:
        fits = MAX_REQUESTS / num_requests
        # Rounded down to two digits: what is named must fit.
        digit = 10.0 ** (math.floor(math.log10(fits)) - 1)
        raise ValueError(
            f"--scale {scale:g} is {num_requests * scale:,.0f} requests for one tower; at most "
            f"{MAX_REQUESTS:,} are drawn: --scale {math.floor(fits / digit) * digit:g} fits"
        )
