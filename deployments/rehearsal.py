"""How many replicas a tower should have, from the work that it has to do.

What to hold is learned from the traffic itself. Each of fifty rules is rehearsed: its replicas,
their start-up and its queue are followed, second by second, as if it had ruled. The cheapest that
was late no more than `on_time` allows decides. A rule wants the highest, of the last `hold`, of

    rate + margin * error + waiting / clearing time         (in replicas)

The rate is of three start-ups; the error is by how much it has been wrong one start-up later. A
quick rule also adds at once what will wait by the time that new replicas serve. What is not known
never takes a replica away. This module imports nothing but the standard library.
"""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

SAMPLE_INTERVAL_S, ROUNDING = 1.0, 1e-9
QUICK_S = 5.0  # over which a quick rule takes the rate
WINDOW = 3.0  # start-ups, over which the others do
MARGINS, HOLDS = (0.5, 1.0, 2.0, 3.25, 6.0), (1.0, 3.0, 10.0, 30.0, 100.0)
"""Of a rule: times the error, and start-ups."""
MEMORY_S, ERROR_MEMORY_S = 6 * 3600.0, 3600.0
PRIOR_S, PRIOR_LATE = 1800.0, 3.0
"""Rules that are lean begin as if they had been late 3 times the allowed for so long."""
FIRST_ERROR = 0.3  # of the rate, until it is known
PRICE = 100.0  # of replica-seconds, at most, for a replica-second of work that is not late


@dataclass(frozen=True)
class Targets:
    """What is wanted of a tower.

    Attributes:
        work_per_replica: tokens or images outstanding for each; used where `delay_s` is 0, and
            while the throughput is not known.
        delay_s: how long clearing what waits may take.
        on_time: share of the work that waits at most `slack_s`; a batch takes time besides.
        startup_s: from the decision for a replica to its first batch, until that is observed.
        scale_to_zero: with nothing to do for three start-ups, keep no replica instead of one.
    """

    work_per_replica: float
    delay_s: float = 30.0
    on_time: float = 0.99
    slack_s: float = 1.0
    startup_s: float = 40.0
    scale_to_zero: bool = False


class Observation(NamedTuple):
    """What is known of one tower at one moment; costs are tokens or images.

    Attributes:
        now_s: any clock that only goes forward.
        outstanding: admitted and not answered, in all Routers; None where no Router reports.
        queued: in the towers' own queues, which outlive a Router.
        arrived: admitted or refused since its start, by Router; None where no Router reports.
        throughput: cost per second of a replica that runs batch after batch; None if not measured.
        target: the replicas aimed for now; `running` serve, and `least` and `most` are the bounds.
    """

    now_s: float
    outstanding: float | None
    queued: float
    arrived: Mapping[str, float] | None
    throughput: float | None
    target: int
    running: int
    least: int = 1
    most: int = 1_000


@dataclass(slots=True)
class Rule:
    """One way to decide, and how it would have done; costs in replica-seconds.

    Attributes:
        peaks: (time, replicas), falling: candidates for the highest within the hold.
        lows: (since, replicas), rising: what has been wanted for a start-up serves.
        waiting: its queue; of late, `late` is the work that was, `spent` its replicas.
    """

    margin: float
    hold: float
    quick: bool
    peaks: deque[tuple[float, int]]
    lows: deque[tuple[float, int]]
    waiting: float = 0.0
    late: float = 0.0
    spent: float = 0.0

    @property
    def is_lean(self) -> bool:
        """Whether it has to prove itself first."""
        return self.margin < MARGINS[3] or self.hold < HOLDS[1]

    def wanted(self, now: "Situation", waiting: float, serving: int) -> int:
        """Return the replicas for now, with so many replica-seconds waiting."""
        want = now.rate + self.margin * now.error + waiting / now.clear_s
        if self.quick:
            waiting += now.startup_s * (now.quick - serving if now.quick > serving else 0.0)
            want = max(want, now.quick + waiting / now.clear_s)
        return math.ceil(want - ROUNDING)

    def serve(self, now: "Situation", count: int, slack_s: float) -> None:
        """Let a step pass with the replicas that this rule would have."""
        since_s, lows = now.now_s, self.lows
        while lows and lows[-1][1] >= count:
            since_s = lows.pop()[0]
        lows.append((since_s, count))
        while len(lows) > 1 and lows[1][0] <= now.now_s - now.startup_s:
            lows.popleft()
        serving = lows[0][1]
        waiting = self.waiting + now.gained - serving * now.step_s
        self.waiting = waiting if waiting > 0 else 0.0
        if (late := waiting - serving * slack_s) > 0:
            self.late += late if late < now.gained else now.gained


class Situation(NamedTuple):
    """What all rules see; work in replica-seconds, rates in replicas.

    Attributes:
        gained: work that arrived in the step of `step_s`.
        rate: of arrival over the window, `quick` over the last seconds.
        error: mean difference between a rate and that of the start-up after it.
    """

    now_s: float
    step_s: float
    gained: float
    rate: float
    quick: float
    error: float
    startup_s: float
    clear_s: float


@dataclass(slots=True)
class Memory:
    """What a decision needs of those before it; changed in place, and handed on.

    Serve drops it when an app is deployed anew. Until the window is full again, no replica goes.

    Attributes:
        totals: the last `arrived` of each Router.
        samples: (time, cost arrived) over the window; `rates`, of the last start-up, before it.
        work: replica-seconds that have arrived, of late.
        rises: (time, replicas) aimed for and not yet running; `peaks` are of Routers.
        throughput: the last that was measured; `startup_s` the mean observed.
    """

    totals: Mapping[str, float] | None = None
    samples: list[tuple[float, float]] = field(default_factory=list)
    rates: deque[tuple[float, float, float]] = field(default_factory=deque)
    error: float = 0.0
    work: float = 0.0
    rules: list[Rule] = field(default_factory=list)
    since_s: float = 0.0  # when they began
    peaks: deque[tuple[float, int]] = field(default_factory=deque)
    rises: list[tuple[float, int]] = field(default_factory=list)
    count: int = 0
    throughput: float | None = None
    startup_s: float = 0.0


def decide(seen: Observation, targets: Targets, memory: Memory) -> tuple[int, Memory]:
    """Return the replicas that a tower should have, and the memory for the next time."""
    memory.throughput = throughput = seen.throughput or memory.throughput
    per_replica = targets.delay_s * (throughput or 0.0) or targets.work_per_replica
    waiting = max(seen.outstanding or 0.0, seen.queued)
    if seen.outstanding is None or seen.arrived is None:
        memory.totals, memory.samples, memory.rates = None, [], deque()
        return max(seen.target, math.ceil(waiting / per_replica)), memory
    if memory.samples and seen.now_s - memory.samples[-1][0] < SAMPLE_INTERVAL_S:
        return memory.count, memory
    watch_starts(seen, targets, memory)
    window_s = WINDOW * memory.startup_s
    gained = record(seen, memory, window_s)
    is_known = memory.samples[0][0] <= seen.now_s - window_s
    busy = memory.samples[-1][1] != memory.samples[0][1] or waiting > 0
    if throughput is not None:
        count = rehearse(seen, targets, memory, gained, waiting)
    else:
        count = max(math.ceil(waiting / per_replica), seen.target if busy else 0)
    count = max(count, 0 if is_known else seen.target)
    least = int(busy or not targets.scale_to_zero)
    memory.count = max(count, least) if least or not is_known else 0
    return memory.count, memory


def watch_starts(seen: Observation, targets: Targets, memory: Memory) -> None:
    """Learn how long a start-up takes from when what was aimed for runs."""
    rises = [rise for rise in memory.rises if rise[1] <= seen.target]
    if seen.target > max(seen.running, rises[-1][1] if rises else 0):
        rises.append((seen.now_s, seen.target))
    startup_s = memory.startup_s or targets.startup_s
    while rises and rises[0][1] <= seen.running:
        startup_s += (max(seen.now_s - rises.pop(0)[0], SAMPLE_INTERVAL_S) - startup_s) / 4
    memory.rises, memory.startup_s = rises, startup_s


def record(seen: Observation, memory: Memory, window_s: float) -> float:
    """Add what arrived since the last observation, and return it.

    Each Router's own increase is taken: one that appears, or whose count fell because it was
    restarted, adds nothing the first time.
    """
    before, memory.totals, samples = memory.totals or {}, seen.arrived or {}, memory.samples
    gained = sum(max(n - before.get(name, n), 0.0) for name, n in memory.totals.items())
    samples.append((seen.now_s, (samples[-1][1] if samples else 0.0) + gained))
    while len(samples) > 1 and samples[1][0] <= seen.now_s - window_s:
        samples.pop(0)
    return gained


def rate_since(samples: list[tuple[float, float]], since_s: float) -> float:
    """Return what arrived per second, over `QUICK_S` at least."""
    begin_s, before = samples[min(bisect_left(samples, (since_s,)), len(samples) - 1)]
    end_s, arrived = samples[-1]
    return (arrived - before) / max(end_s - begin_s, QUICK_S)


def rehearse(
    seen: Observation, targets: Targets, memory: Memory, gained: float, waiting: float
) -> int:
    """Let every rule go on by a step, and return the count of the best."""
    throughput, startup_s = memory.throughput or 1.0, memory.startup_s
    if not memory.rules:
        memory.since_s = seen.now_s
        for setting in product(MARGINS, HOLDS, (False, True)):
            peaks, lows = deque([(seen.now_s, seen.target)]), deque([(-math.inf, seen.running)])
            memory.rules.append(Rule(*setting, peaks, lows))
    now = situation(seen, targets, memory, gained, throughput)
    # From when both rate and error are known.
    rehearsed_s = seen.now_s - memory.since_s - (WINDOW + 1) * startup_s
    decay = math.exp(-now.step_s / MEMORY_S)
    memory.work = memory.work * decay + (now.gained if rehearsed_s > 0 else 0.0)
    for rule in memory.rules:  # most of the time that the policy takes
        want = rule.wanted(now, rule.waiting, rule.lows[0][1])
        want = seen.least if want < seen.least else seen.most if want > seen.most else want
        count = hold(rule.peaks, seen.now_s, want, rule.hold * startup_s)
        rule.spent = rule.spent * decay + count * now.step_s
        rule.late *= decay
        if rehearsed_s > 0:
            rule.serve(now, count, targets.slack_s)
        else:
            rule.lows = deque([(-math.inf, count)])
    best = choose(memory, 1 - targets.on_time, rehearsed_s)
    return max(best.peaks[0][1], best.wanted(now, waiting / throughput, seen.running))


def situation(
    seen: Observation, targets: Targets, memory: Memory, gained: float, throughput: float
) -> Situation:
    """Return what the rules see, after learning from it how wrong the rate has been."""
    samples, rates, startup_s = memory.samples, memory.rates, memory.startup_s
    step_s = samples[-1][0] - samples[-2][0] if len(samples) > 1 else 0.0
    rate = rate_since(samples, -math.inf) / throughput
    known_s = seen.now_s - memory.since_s - WINDOW * startup_s
    if known_s >= 0:
        rates.append((seen.now_s, rate, samples[-1][1]))
    while rates and rates[0][0] <= seen.now_s - startup_s:
        then_s, expected, before = rates.popleft()
        came = (samples[-1][1] - before) / (seen.now_s - then_s) / throughput
        share = step_s / min(max(known_s - startup_s, SAMPLE_INTERVAL_S), ERROR_MEMORY_S)
        memory.error += (abs(came - expected) - memory.error) * min(share, 1.0)
    quick = rate_since(samples, seen.now_s - QUICK_S) / throughput
    error = memory.error if known_s > startup_s else FIRST_ERROR * rate
    clear_s = targets.delay_s or targets.work_per_replica / throughput
    gained /= throughput
    return Situation(seen.now_s, step_s, gained, rate, quick, error, startup_s, clear_s)


def choose(memory: Memory, may_be_late: float, rehearsed_s: float) -> Rule:
    """Return the rule that would have cost the least, with a price on work that is late."""
    prior = memory.work / max(min(rehearsed_s, MEMORY_S), SAMPLE_INTERVAL_S) * PRIOR_S
    allowed = may_be_late * (memory.work + prior)

    lean = prior * may_be_late * PRIOR_LATE if memory.work else math.inf  # not even tried then
    prices = []
    for rule in memory.rules:
        late = rule.late - allowed + (lean if rule.is_lean else 0.0)
        prices.append(rule.spent + (PRICE * late if late > 0 else 0.0))
    return memory.rules[prices.index(min(prices))]


def hold(peaks: deque[tuple[float, int]], now_s: float, count: int, hold_s: float) -> int:
    """Add a count to the falling peaks; return the highest of the last `hold_s`."""
    while peaks and peaks[-1][1] <= count:
        peaks.pop()
    peaks.append((now_s, count))
    while peaks[0][0] < now_s - hold_s:
        peaks.popleft()
    return peaks[0][1]
