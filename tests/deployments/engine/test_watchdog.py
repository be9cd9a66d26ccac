"""How fast a device works, and when it counts as stuck."""

import pytest

from deployments.engine.watchdog import FIRST_BATCH_S, Progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def batch(progress: Progress, clock: Clock, cost: int, seconds: float) -> None:
    progress.begin(cost)
    clock.now += seconds
    progress.end()


def test_the_rate_is_that_of_batches_that_follow_on_another():
    """Neither idle seconds nor lone small batches make the device look slow."""
    clock = Clock()
    progress = Progress(clock)
    for _ in range(3):
        batch(progress, clock, 1, 0.5)
        clock.now += 2
    assert progress.per_s() == 0
    for _ in range(3):
        batch(progress, clock, 100, 0.5)
    assert progress.per_s() == pytest.approx(200)


def test_old_batches_are_forgotten():
    """After a long silence nothing is known."""
    clock = Clock()
    progress = Progress(clock)
    batch(progress, clock, 100, 0.5)
    batch(progress, clock, 100, 0.5)
    assert progress.per_s() > 0
    clock.now += 100
    assert progress.per_s() == 0


def test_the_first_batch_has_more_time_and_later_ones_their_pace():
    """Compilation may take long; a proven device must keep within reach of its pace."""
    clock = Clock()
    progress = Progress(clock)
    progress.begin(10)
    clock.now = FIRST_BATCH_S - 1
    progress.check()
    clock.now = FIRST_BATCH_S + 1
    with pytest.raises(RuntimeError, match="cost 10"):
        progress.check()
    progress.end()
    batch(progress, clock, 10, 0.01)
    clock.now += 60
    batch(progress, clock, 10, 0.01)
    progress.begin(10)
    clock.now += 6
    with pytest.raises(RuntimeError, match="no progress within 5 s"):
        progress.check()


def test_a_large_batch_may_take_as_much_longer_as_it_costs():
    """Ten times the cost has ten times the time."""
    clock = Clock()
    progress = Progress(clock)
    batch(progress, clock, 100, 1.0)
    progress.begin(1000)
    clock.now += 150
    progress.check()
