"""What others run: each rule with numbers that can be worked out by hand."""

import numpy as np
import pytest

from deployments.plan import rivals
from deployments.plan.bursts import generate_bursts
from deployments.plan.rivals import Change, HpaLoop
from deployments.plan.simulation import View
from deployments.plan.tower import Tower
from deployments.plan.traffic import Traffic

TOWER = Tower(rate=10.0, max_replicas=20)


def view(now_s: float, target: int, **seen: float) -> View:
    def one(name: str) -> np.ndarray:
        return np.array([float(seen.get(name, 0.0))])

    return View(
        now_s=now_s,
        outstanding=one("outstanding"),
        arrived=seen.get("arrived", 0.0),
        served=one("arrived"),
        num_requests=seen.get("num_requests", 0.0),
        count_ongoing=lambda: one("ongoing"),
        running=np.array([target]),
        target=np.array([target]),
    )


def hpa(wishes: list[float], window_s: float) -> list[int]:
    """Return the count at each sync for a wish at each."""
    wish = np.zeros(1)
    loop, target, counts = HpaLoop(lambda view: wish, np.array([window_s]), TOWER), 1, []
    for wanted in wishes:
        wish[:] = wanted
        for second in range(HpaLoop.SYNC_S):
            target = int(loop(view(float(second), target)).item())
        counts.append(target)
    return counts


def test_the_hpa_adds_at_most_four_or_doubles() -> None:
    """From 1 to 30 wanted, with 20 the most: 5, 10, 20."""
    assert hpa([30.0, 30.0, 30.0, 30.0], 15.0) == [5, 10, 20, 20]


def test_the_hpa_tolerates_a_tenth_and_waits_on_the_way_down() -> None:
    """5.4 and 4.6 leave 5; then 1 is followed when no higher wish is in the last 45 s."""
    assert hpa([5.0, 5.4, 4.6, 1.0, 1.0, 1.0, 1.0], 45.0) == [5, 5, 5, 5, 5, 1, 1]


def test_a_change_is_over_so_many_seconds() -> None:
    """A total that grows by two each second grows by six in three."""
    change = Change(3)
    assert [change(2.0 * second) for second in range(6)] == [0, 2, 4, 6, 6, 6]


@pytest.mark.parametrize(
    ("rival", "setting", "expected"),
    [
        # 60 a second at 10 a replica, one request a second, none waits.
        (lambda: rivals.utilization(TOWER, 1), "utilization=0.6 stabilization_s=60", 10),
        (lambda: rivals.arrival_rate(TOWER, 1, 60.0), "share_of_throughput=0.6 ", 10),
        (lambda: rivals.velocity(TOWER, 1), "spare=1.5 downscale_delay_s=30", 9),
        (lambda: rivals.forecast(TOWER, 1), "spare=1.5 clear_s=30", 9),
        (lambda: rivals.chiron(TOWER, 1), "busy_share=0.6 deadline_s=10 downscale_delay_s=60", 10),
    ],
)
def test_even_work_gets_what_each_rule_says(rival, setting, expected) -> None:
    """Work over the throughput, times or over the setting, after everything has settled."""
    found, target = rival(), np.array([1])
    place = next(i for i, name in enumerate(found.settings) if name.startswith(setting))
    for second in range(700):
        now = view(float(second), 1, arrived=60.0 * second, num_requests=1.0 * second)
        now.target = now.running = target
        target = found.policy(now)
    assert target[place] == expected


def test_the_queue_length_rises_at_once_and_falls_one_by_one() -> None:
    """20 in progress at 1 replica with a high mark of 2: 10; idle, one fewer each 30 s."""
    found = rivals.queue_length(TOWER, 1)
    place = found.settings.index("high=2 low=0.3 cooldown_s=30")
    busy = view(0.0, 1, ongoing=20.0)
    target = found.policy(busy)
    assert target[place] == 10
    for second in range(1, 63):
        idle = view(float(second), 1)
        idle.target = idle.running = target
        target = found.policy(idle)
    assert target[place] == 8


@pytest.fixture(scope="module")
def bursts() -> Traffic:
    return generate_bursts(0.05, seed=2)


def test_generated_bursts_begin_and_end_in_nothing(bursts: Traffic) -> None:
    """In a fifth of all minutes nothing comes, and the highest is many times the mean."""
    per_minute = np.bincount((bursts.vision.arrival_s // 60).astype(int), minlength=1440)
    assert (per_minute == 0).mean() > 0.2
    assert per_minute.max() > 5 * per_minute.mean()
