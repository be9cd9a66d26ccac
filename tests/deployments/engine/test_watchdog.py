"""How fast a device works, and when it counts as stuck."""

import pytest

from deployments.engine.watchdog import FIRST_BATCH_S, Watchdog


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def batch(watchdog: Watchdog, clock: Clock, cost: int, seconds: float) -> None:
    begun = watchdog.begin(cost)
    clock.now += seconds
    watchdog.end(begun)


def test_the_rate_is_that_of_batches_that_follow_on_another():
    """Neither idle seconds nor lone small batches make the device look slow."""
    clock = Clock()
    watchdog = Watchdog(clock)
    for _ in range(3):
        batch(watchdog, clock, 1, 0.5)
        clock.now += 2
    assert watchdog.cost_per_s() == 0
    for _ in range(3):
        batch(watchdog, clock, 100, 0.5)
    assert watchdog.cost_per_s() == pytest.approx(200)


def test_old_batches_are_forgotten():
    """After a long silence nothing is known."""
    clock = Clock()
    watchdog = Watchdog(clock)
    batch(watchdog, clock, 100, 0.5)
    batch(watchdog, clock, 100, 0.5)
    assert watchdog.cost_per_s() > 0
    clock.now += 100
    assert watchdog.cost_per_s() == 0


def test_the_first_batch_has_more_time_and_later_ones_their_pace():
    """Compilation may take long; a proven device must keep within reach of its pace."""
    clock = Clock()
    watchdog = Watchdog(clock)
    first = watchdog.begin(10)
    clock.now = FIRST_BATCH_S - 1
    watchdog.check()
    clock.now = FIRST_BATCH_S + 1
    with pytest.raises(RuntimeError, match="cost 10"):
        watchdog.check()
    watchdog.end(first)
    batch(watchdog, clock, 10, 0.01)
    clock.now += 60
    batch(watchdog, clock, 10, 0.01)
    watchdog.begin(10)
    clock.now += 6
    with pytest.raises(RuntimeError, match="no progress within 5 s"):
        watchdog.check()


def test_a_large_batch_may_take_as_much_longer_as_it_costs():
    """Ten times the cost has ten times the time."""
    clock = Clock()
    watchdog = Watchdog(clock)
    batch(watchdog, clock, 100, 1.0)
    watchdog.begin(1000)
    clock.now += 150
    watchdog.check()


def test_a_batch_that_waits_behind_another_is_timed_from_when_the_device_has_it():
    """Two in flight: neither looks slower than it is, and one that waits is not stuck."""
    clock = Clock()
    watchdog = Watchdog(clock)
    first = watchdog.begin(100)
    clock.now += 0.4
    second = watchdog.begin(100)
    assert watchdog.running_cost == 200
    clock.now += 0.1
    assert watchdog.end(first) == pytest.approx(0.5)
    clock.now += 0.5
    assert watchdog.end(second) == pytest.approx(0.5)
    assert watchdog.cost_per_s() == pytest.approx(200)
    assert watchdog.running_cost == 0


def test_a_batch_that_failed_is_no_throughput():
    """Batches that fail at once do not make the device look fast, nor prove that it works."""
    clock = Clock()
    watchdog = Watchdog(clock)
    for _ in range(3):
        begun = watchdog.begin(100)
        clock.now += 0.001
        watchdog.end(begun, done=False)
    assert watchdog.cost_per_s() == 0
    for _ in range(2):
        batch(watchdog, clock, 100, 0.5)
    assert watchdog.cost_per_s() == pytest.approx(200)


def test_a_batch_is_expected_to_take_as_long_as_the_last_of_its_size():
    """Whatever lay between them; nothing is expected of a size that never ran."""
    clock = Clock()
    watchdog = Watchdog(clock)
    assert watchdog.expected_s(100) is None
    for _ in range(40):
        batch(watchdog, clock, 100, 0.5)
        batch(watchdog, clock, 1, 0.1)
        clock.now += 0.02  # the next one was late
    assert watchdog.cost_per_s() > 0
    assert watchdog.expected_s(100) == pytest.approx(0.5)
    assert watchdog.expected_s(80) == pytest.approx(0.4)
    assert watchdog.expected_s(1) == pytest.approx(0.1)
    assert watchdog.expected_s(1000) is None
