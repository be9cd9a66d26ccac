"""The least that any policy must pay for, even one that knows the future.

A replica that serves at some moment has been paid for since its start-up began. So what is paid at
`t` is at least the replicas that serve at any moment until `t + startup_s`, and they must, in every
interval within that time, do all that arrives and falls due in the interval. Over half an hour the
replicas must do what arrives and falls due in it, whatever their order. The bound is for every item
on time; it is a bound and no schedule: none may reach it.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from deployments.plan.load import Floats, Load
from deployments.plan.tower import Flags, Ints, Tower

BLOCK_S = 1800


@dataclass(frozen=True, slots=True)
class Bound:
    """The least that every item on time costs.

    Attributes:
        replicas: int64 [seconds], paid for at least at each moment.
        gpu_hours: at least in all; more than the sum of `replicas`, for work that no short interval
            must contain.
        work_gpu_hours: the work alone, on replicas that are never idle and need no start.
    """

    replicas: Ints
    gpu_hours: float
    work_gpu_hours: float


def clairvoyant(load: Load, tower: Tower) -> Bound:
    """Return the bound for a load with the tower's rate, start-up, objective and least replicas."""
    end = max(math.ceil(load.duration_s), 1)
    arrival = np.floor(load.arrival_s).astype(np.int64)
    own_s = load.cost / load.number / tower.rate
    due = np.ceil(load.arrival_s + own_s + tower.slack_s).astype(np.int64)
    replicas = np.full(end, tower.min_replicas, np.int64)
    lengths = interval_lengths(int(tower.startup_s))
    # What falls due within a span counts for the next longer length: later, so still a bound.
    classes = np.searchsorted(lengths, due - arrival)
    begun = [_cumulated(load.cost, arrival, classes == k, end) for k in range(len(lengths))]
    for index, length in enumerate(lengths):
        work = np.zeros(end)
        for k in range(index + 1):
            last = np.minimum(np.arange(end) + length - lengths[k] + 1, end)
            work += begun[k][last] - begun[k][:-1]
        needed = np.ceil(work / (tower.rate * length) - 1e-9).astype(np.int64)
        np.maximum(replicas, _highest_ahead(needed, int(tower.startup_s) - length), out=replicas)
    return Bound(
        replicas,
        _in_blocks(load.cost, arrival, due, replicas, tower.rate) / 3600,
        float(load.cost.sum()) / tower.rate / 3600,
    )


def interval_lengths(longest_s: int) -> list[int]:
    """Return lengths up to the longest, each about a sixth more than the one before."""
    lengths = {longest_s} if longest_s > 0 else set()
    length = 1
    while length < longest_s:
        lengths.add(length)
        length += max(length // 6, 1)
    return sorted(lengths)


def _cumulated(cost: Floats, second: Ints, chosen: Flags, end: int) -> Floats:
    chosen = chosen & (second < end)
    each = np.bincount(second[chosen], weights=cost[chosen], minlength=end)
    return np.concatenate([[0.0], np.cumsum(each)])


def _highest_ahead(values: Ints, ahead: int) -> Ints:
    """Return the highest of each value and of so many after it."""
    padded = np.concatenate([values, np.zeros(ahead, np.int64)])
    highest: Ints = sliding_window_view(padded, ahead + 1).max(axis=1)
    return highest


def _in_blocks(cost: Floats, arrival: Ints, due: Ints, replicas: Ints, rate: float) -> float:
    """Return replica seconds: in each block the larger of the two bounds."""
    block = arrival // BLOCK_S
    within = (due <= (block + 1) * BLOCK_S) & (due <= len(replicas))
    starts = np.arange(0, len(replicas), BLOCK_S)
    work = np.bincount(block[within], weights=cost[within] / rate, minlength=len(starts))
    return float(np.maximum(np.add.reduceat(replicas, starts), work[: len(starts)]).sum())
