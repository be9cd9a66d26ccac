"""The rules of the autoscaling decision, with plain numbers and a clock that is a number."""

import pickle
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from deployments.rehearsal import (
    Memory,
    Observation,
    Rule,
    Situation,
    Targets,
    choose,
    decide,
    hold,
    watch_starts,
)

TARGETS = Targets(work_per_replica=100.0, startup_s=10.0)
SEEN = Observation(
    now_s=0.0,
    outstanding=0.0,
    queued=0.0,
    arrived={"r": 0.0},
    throughput=10.0,
    target=1,
    running=1,
    most=50,
)
HOUR_S = 3600


class Tower:
    """One tower whose replicas start at once after the policy has asked, second by second."""

    def __init__(self, targets: Targets = TARGETS, target: int = 1, **seen: Any) -> None:
        self.targets, self.memory, self.now_s, self.total = targets, Memory(), 0.0, 0.0
        self.count, self.seen = target, seen

    def run(self, seconds: int, per_s: Any) -> list[int]:
        """Let work arrive at a rate, or at one for each second; return the counts."""
        counts = []
        for gained in np.broadcast_to(per_s, seconds).tolist():
            self.now_s += 1
            self.total += gained
            state = {"target": self.count, "running": self.count, "arrived": {"r": self.total}}
            seen = SEEN._replace(**{"now_s": self.now_s, **state, **self.seen})
            self.count, self.memory = decide(seen, self.targets, self.memory)
            counts.append(self.count)
        return counts


def test_even_work_has_the_replicas_that_it_fills() -> None:
    """40 a second at 10 a replica are 4 replicas, once the rate has been right for a while."""
    assert set(Tower().run(HOUR_S, 40.0)[600:]) == {4}


def test_uneven_work_has_more_and_more_so_the_more_must_be_on_time() -> None:
    """The same mean with bursts of half a minute: a higher share on time holds more."""
    rng = np.random.default_rng(0)
    uneven = np.repeat(rng.gamma(2.0, 20.0, 3 * HOUR_S // 30), 30)
    held = {}
    for share in (0.7, 0.99):
        counts = Tower(replace(TARGETS, on_time=share)).run(len(uneven), uneven)
        held[share] = np.mean(counts[HOUR_S:])
    assert uneven.mean() / 10 < held[0.7] < held[0.99]


def test_bursts_that_come_back_are_waited_for_and_others_are_not() -> None:
    """A minute of 20 replicas' work each five minutes is held for; one in three hours is not."""
    often, once = Tower(), Tower()
    period = [200.0] * 60 + [0.0] * 240
    often.run(3 * HOUR_S, np.resize(period, 3 * HOUR_S))
    once.run(3 * HOUR_S, np.array(period + [0.0] * (3 * HOUR_S - 300)))
    assert min(often.run(280, period[:280])) >= 15
    assert once.count == 1


def test_replicas_clear_what_waits() -> None:
    """250 waiting, to be cleared in 5 s at 10 a second, are 5; or 100 a replica, where unknown."""
    seen = SEEN._replace(outstanding=250.0)
    timed = replace(TARGETS, delay_s=5.0)
    assert decide(seen, timed, Memory())[0] == 5
    assert decide(seen._replace(throughput=None), timed, Memory())[0] == 3
    assert decide(seen, replace(TARGETS, delay_s=0.0), Memory())[0] == 3


def test_the_towers_own_queues_are_a_floor() -> None:
    """Work that a dead Router took out of its count is still seen in the towers."""
    counting = replace(TARGETS, delay_s=0.0)
    assert decide(SEEN._replace(queued=350.0), counting, Memory())[0] == 4
    assert decide(SEEN._replace(queued=350.0, outstanding=450.0), counting, Memory())[0] == 5


@pytest.mark.parametrize("missing", ["outstanding", "arrived"])
def test_missing_routers_hold_the_count(missing: str) -> None:
    """No Router series is not the same as no work; what the towers hold may still add replicas."""
    gone = SEEN._replace(target=7, **{missing: None})
    assert decide(gone, TARGETS, Memory())[0] == 7
    assert decide(gone._replace(queued=2700.0), TARGETS, Memory())[0] == 9


def test_routers_that_come_back_are_neither_a_burst_nor_a_silence() -> None:
    """The rate is taken anew, and what was learned of the traffic is kept."""
    tower = Tower()
    tower.run(HOUR_S, 40.0)
    learned = tower.memory.work
    tower.seen = {"arrived": None}
    assert set(tower.run(60, 40.0)) == {4}
    tower.seen = {}
    assert set(tower.run(60, 40.0)) <= {4, 5}
    assert tower.memory.work > 0.9 * learned


def test_a_restarted_router_adds_nothing_the_first_time() -> None:
    """Each Router's own increase counts: one begins anew at 0, one appears with a large total."""
    _, memory = decide(SEEN._replace(arrived={"a": 1e6, "b": 500.0}), TARGETS, Memory())
    after = SEEN._replace(now_s=1.0, arrived={"a": 0.0, "b": 520.0, "c": 1e6})
    _, memory = decide(after, TARGETS, memory)
    assert memory.samples[-1][1] == 20.0


def test_unknown_throughput_never_scales_down() -> None:
    """Arrivals without a measured rate hold the count; a rate once measured is remembered."""
    tower = Tower(target=5, throughput=None)
    assert set(tower.run(200, 1.0)) == {5}
    tower.seen = {}
    tower.run(2, 1.0)
    tower.seen = {"throughput": None}
    assert tower.run(400, 1.0)[-1] == 1


def test_a_lost_memory_holds_the_count_for_three_start_ups() -> None:
    """After Serve dropped the state, the count stands, and then follows the load."""
    counts = Tower(target=8).run(120, 10.0)
    assert set(counts[:30]) == {8}
    assert counts[-1] == 1


def test_zero_only_where_it_is_asked_for_and_after_three_start_ups() -> None:
    """Idle towers keep one replica; with `scale_to_zero` none, and work brings one back."""
    assert Tower().run(90, 0.0)[-1] == 1
    tower = Tower(replace(TARGETS, scale_to_zero=True))
    counts = tower.run(90, 0.0)
    assert (min(counts[:29]), counts[-1]) == (1, 0)
    tower.seen = {"outstanding": 1.0}
    assert tower.run(1, 0.0) == [1]


def test_fast_ticks_keep_a_bounded_memory() -> None:
    """Serve decides ten times a second; once a second is enough, and nothing grows."""
    memory = Memory()
    for tick in range(6000):
        seen = SEEN._replace(now_s=tick / 10, arrived={"r": tick * 2.0})
        count, memory = decide(seen, TARGETS, memory)
    assert count == 2
    assert len(memory.samples) <= 32
    assert len(memory.rates) <= 12
    assert max(len(rule.peaks) + len(rule.lows) for rule in memory.rules) < 12


def test_bounds_hold_for_every_rule() -> None:
    """A rule that asks for more than there may be is not judged as if it had got it."""
    tower = Tower(most=3, least=2)
    tower.run(300, 100.0)
    assert {rule.peaks[0][1] for rule in tower.memory.rules} == {3}
    idle = Tower(most=3, least=2, target=2)
    idle.run(300, 0.0)
    assert {rule.peaks[0][1] for rule in idle.memory.rules} == {2}


def test_how_long_replicas_take_to_start_is_learned() -> None:
    """Asked for at 0, here at 50: a quarter of the way from 10 s. One called off says nothing."""
    memory = Memory()
    for now_s, target, running in ((0, 3, 1), (10, 3, 1), (20, 5, 1), (30, 3, 1), (50, 3, 3)):
        watch_starts(SEEN._replace(now_s=now_s, target=target, running=running), TARGETS, memory)
    assert memory.startup_s == 20.0
    assert memory.rises == []


def rule(**known: Any) -> Rule:
    return Rule(6.0, 3.0, False, deque(), deque([(0.0, 1)]), **known)


def test_a_rehearsed_replica_serves_after_its_start_up() -> None:
    """Wanted from 1 s on, serving from 11: until then the queue grows and what comes is late."""
    one = rule()
    for second in range(1, 21):
        now = Situation(float(second), 1.0, 2.0, 0.0, 0.0, 0.0, 10.0, 30.0)
        one.serve(now, 3, 1.0)
        if second == 10:
            assert (one.waiting, one.lows[0][1]) == (10.0, 1)
    assert one.waiting == 0.0
    # 1 in the second second, all in the next 13, half in one more.
    assert one.late == 1 + 2 * 13 + 1
    one.serve(Situation(21.0, 1.0, 2.0, 0.0, 0.0, 0.0, 10.0, 30.0), 1, 1.0)
    assert one.lows[0][1] == 1


def test_the_cheapest_rule_that_is_on_time_decides() -> None:
    """Late work has a price, above what may be late; a dear rule does not win by being early."""
    late, cheap, dear = rule(late=20.0, spent=900.0), rule(late=10.0, spent=1000.0), rule()
    dear.spent = 3000.0
    memory = Memory(work=1000.0, rules=[late, cheap, dear])
    assert choose(memory, 0.01, 1e9) is cheap
    assert choose(memory, 0.02, 1e9) is late
    assert choose(memory, 0.0001, 1e9) is cheap
    dear.spent = 1500.0
    assert choose(memory, 0.0001, 1e9) is dear


def test_lean_rules_have_to_prove_themselves() -> None:
    """Before anything is known the careful ones decide, and for the first half hour more."""
    lean, careful = rule(spent=1.0), rule(spent=500.0)
    lean.margin = 0.5
    memory = Memory(rules=[lean, careful])
    assert choose(memory, 0.01, 0.0) is careful
    memory.work = 600.0
    assert choose(memory, 0.01, 600.0) is careful
    memory.work = 6 * 3600.0
    assert choose(memory, 0.01, 6 * 3600.0) is lean


def test_a_hold_keeps_the_highest_of_late() -> None:
    """A peak counts for as long as the hold, and then the next highest."""
    peaks: deque[tuple[float, int]] = deque()
    held = [hold(peaks, second, count, 2.0) for second, count in enumerate((5, 3, 4, 1, 1, 1, 6))]
    assert held == [5, 5, 5, 4, 4, 1, 6]


def test_the_memory_survives_pickling() -> None:
    """State may be written down between decisions, and the next one is the same."""
    tower = Tower()
    tower.run(200, 33.0)
    copy = pickle.loads(pickle.dumps(tower.memory))
    seen = SEEN._replace(now_s=201.0, arrived={"r": tower.total}, outstanding=500.0)
    assert decide(seen, TARGETS, copy)[0] == decide(seen, TARGETS, tower.memory)[0]


@pytest.mark.parametrize("throughput", [None, 10.0])
def test_work_that_was_refused_wakes_a_tower(throughput: float | None) -> None:
    """Nothing waits, for the Router sent it away, and nobody has measured the tower yet."""
    targets = replace(TARGETS, scale_to_zero=True)
    tower = Tower(targets, 0, throughput=throughput, least=0)
    window_s = round(3 * targets.startup_s)
    assert set(tower.run(window_s + 60, 0.0)) == {0}
    assert tower.run(1, 5.0) == [1]
    assert set(tower.run(window_s - 10, 0.0)) == {1}
    assert tower.run(60, 0.0)[-1] == 0
