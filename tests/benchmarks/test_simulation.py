"""What lays the replicas of Ray Serve beside the simulated ones, and what counts requests."""

import json

import numpy as np
import pytest

from benchmarks.harness.outcomes import Outcome
from benchmarks.keys import most_at_once
from benchmarks.simulation import CONFIG, LEAST, PACES, Course, bodies, simulation, thinned
from deployments.plan.load import Load


def test_replica_seconds_and_the_start_up_are_those_that_were_seen() -> None:
    """Two replicas come after ten seconds and run after another five; looks are not even."""
    samples = [
        (at_s, {"TextTower": (1 + 2 * (at_s >= 10), 1 + 2 * (at_s >= 15)), "other": (9, 9)})
        for at_s in (0.0, 4.0, 10.0, 11.0, 15.0, 20.0)
    ]
    course = Course.of(samples, "TextTower")
    assert course.replica_s(course.paid) == 10 * 1 + 15 * 3
    assert course.replica_s(course.running) == 15 * 1 + 10 * 3
    assert course.startup_s == pytest.approx(5.0)


def test_a_trace_that_runs_faster_swells_to_its_own_rate_and_has_its_own_sizes() -> None:
    """Ten requests a second at all speeds, but for a tenth of them at both ends."""
    load = Load.of(np.arange(0, 6000, 0.1), np.full(60_000, 7.0), np.ones(60_000), 6000.0)
    fast = thinned(load, 600.0, 10.0)
    per_s = np.histogram(fast.arrival_s, bins=10, range=(0, 600))[0] / 60
    assert per_s[4:6].mean() == pytest.approx(10, rel=0.1)
    assert per_s[[0, 9]].mean() == pytest.approx(10 * LEAST, rel=0.2)
    assert set(fast.cost) == {7.0}
    images = [json.loads(call.body)["input"] for call in bodies(fast, "VisionTower")]
    assert {len(items) for items in images} == {7}
    assert len(images) == len(fast.cost)


def test_the_simulation_is_of_the_towers_that_the_benchmark_runs() -> None:
    """Half of one replica's work is one; five replicas' work at once comes to five or more."""
    pace = PACES["VisionTower"]
    quiet = Load.of(
        np.arange(0, 300, 2 / pace), np.ones(int(150 * pace)), np.ones(int(150 * pace)), 300.0
    )
    assert set(simulation(quiet, "VisionTower", 5.0)[1].paid[-60:]) <= {1.0, 2.0}
    busy = Load.of(
        np.arange(0, 300, 0.2 / pace), np.ones(int(1500 * pace)), np.ones(int(1500 * pace)), 300.0
    )
    assert simulation(busy, "VisionTower", 5.0)[1].paid.max() >= 5
    assert CONFIG.text.scaling == CONFIG.vision.scaling


def test_requests_at_once_are_counted_from_those_that_were_let_in() -> None:
    """Three overlap for one second of ten; what was refused does not count."""
    times = [(0.0, 10.0), (0.0, 10.0), (4.0, 5.0)]
    outcomes = [Outcome("x", sent_s, sent_s, ended_s, 200) for sent_s, ended_s in times]
    outcomes += [Outcome("x", 4.0, 4.0, 5.0, 429)] * 5
    assert most_at_once(outcomes, 0.0) == 3
    assert most_at_once(outcomes, 0.2) == 2
    assert most_at_once([], 0.0) == 0
