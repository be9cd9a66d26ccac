"""A key's requests under way over several Routers: never more than the limit, and few calls."""

import asyncio
import random
from functools import wraps

import pytest

from serve_app.api.leases import RETRY_S, SLOTS_S, Books
from serve_app.api.slots import Slots

KEY = "k"
LIMIT = 8


class Timeless(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer when nothing else is to be done."""

    now_s = 1000.0

    def time(self) -> float:
        return self.now_s

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:
            self.now_s = max(self.now_s, self._scheduled[0].when())
        super()._run_once()


def timeless(test):
    """Let a test run on such a loop."""

    @wraps(test)
    def run(*args, **arguments) -> None:
        with asyncio.Runner(loop_factory=Timeless) as runner:
            runner.run(test(*args, **arguments))

    return run


class Cluster:
    """Routers around one set of books."""

    def __init__(self, num_routers: int) -> None:
        self.calls, self.alone, self.lost = 0, 0, False
        self.told = asyncio.Event()
        self.clock = asyncio.get_running_loop().time
        self.books = Books(self.clock)
        self.books._begun_s -= SLOTS_S
        self.routers = [self.router(f"r{number}") for number in range(num_routers)]

    def router(self, name: str) -> Slots:
        async def ask(method: str, *arguments: str | int) -> tuple[float, ...]:
            self.calls += 1
            await asyncio.sleep(0)
            if self.lost:
                raise ConnectionError("the actor is gone")
            told = (*getattr(self.books, method)(name, *arguments),)  # its classes are not ours
            self.told.set()
            await asyncio.sleep(0.001)
            return told

        return Slots(ask, self.count_alone, self.clock)

    def count_alone(self) -> None:
        self.alone += 1

    @property
    def under_way(self) -> int:
        return sum(router.under_way for router in self.routers)


async def fill(cluster: Cluster, tries: int = 100) -> int:
    """Begin requests at all Routers until no more are let in; return how many were."""
    taken = 0
    for number in range(tries):
        taken += await cluster.routers[number % len(cluster.routers)].take(KEY, LIMIT)
    return taken


@pytest.mark.parametrize("num_routers", [1, 2, 4, 12])
@timeless
async def test_a_limit_holds_for_all_routers_together(num_routers):
    """Eight at once, not eight at each; when one ends at one Router another begins anywhere."""
    routers = Cluster(num_routers)
    assert await fill(routers) == LIMIT
    ended = next(router for router in routers.routers if router.under_way)
    ended.free()
    await asyncio.sleep(1.5)
    assert await fill(routers) == 1


@timeless
async def test_one_router_may_have_the_whole_limit():
    """What others had and do not use any more is there within seconds."""
    routers = Cluster(4)
    assert await fill(routers) == LIMIT
    for router in routers.routers:
        while router.under_way:
            router.free()
    await asyncio.sleep(1.5)
    assert [await routers.routers[0].take(KEY, LIMIT) for _ in range(LIMIT + 1)] == [True] * 8 + [
        False
    ]


@timeless
async def test_the_limit_holds_at_every_moment_of_a_busy_minute():
    """Random requests at Routers that come and go: never nine, and mostly eight."""
    routers, rng, seen = Cluster(1), random.Random(3), []

    async def caller(end_s: float) -> None:
        while routers.clock() < end_s:
            router = rng.choice(routers.routers)
            if await router.take(KEY, LIMIT):
                seen.append(routers.under_way)
                await asyncio.sleep(rng.expovariate(5))
                seen.append(routers.under_way)
                router.free()
            await asyncio.sleep(rng.expovariate(5))

    begin_s = routers.clock()
    callers = [asyncio.create_task(caller(begin_s + 60)) for _ in range(24)]
    await asyncio.sleep(15)
    routers.routers += [routers.router(f"new{number}") for number in range(3)]
    await asyncio.sleep(25)
    leaving = routers.routers[1:]
    routers.routers = routers.routers[:1] + leaving[2:]
    await asyncio.gather(*callers)
    assert max(seen) <= LIMIT
    assert sum(count >= LIMIT - 1 for count in seen) > len(seen) / 2
    assert not routers.alone


@timeless
async def test_slots_are_leased_and_not_asked_for_by_each_request():
    """A thousand requests, three at a time, in ten seconds: two calls a second of each."""
    routers = Cluster(2)

    async def caller(router: Slots) -> None:
        for _ in range(166):
            assert await router.take(KEY, LIMIT)
            await asyncio.sleep(0.06)
            router.free()

    begin_s = routers.clock()
    await asyncio.gather(*(caller(router) for router in routers.routers for _ in range(3)))
    assert routers.calls < 6 * (routers.clock() - begin_s) + 10
    await asyncio.sleep(3)
    calls = routers.calls
    await asyncio.sleep(5)
    assert routers.calls == calls, "a key that nobody uses costs nothing"


@timeless
async def test_a_caller_who_leaves_while_slots_are_asked_for_keeps_none():
    """The books have given them, and nobody heard it: others have them within a second."""
    cluster = Cluster(2)
    first, second = cluster.routers
    leaves = asyncio.create_task(first.take(KEY, 1))
    await cluster.told.wait()
    leaves.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaves
    assert not await second.take(KEY, 1)
    await asyncio.sleep(1)
    assert await second.take(KEY, 1)


@timeless
async def test_without_the_books_each_router_goes_on_with_its_share():
    """Lost: two of eight at each of four, counted; afterwards what is left is known again."""
    routers = Cluster(4)
    assert await fill(routers) == LIMIT
    for router in routers.routers:
        while router.under_way:
            router.free()
    routers.lost = True
    await asyncio.sleep(1.5)
    assert await fill(routers) == LIMIT
    assert [router.under_way for router in routers.routers] == [2, 2, 2, 2]
    assert routers.alone == LIMIT
    routers.books = Books(routers.clock)  # new ones, which have to hear of all first
    routers.lost = False
    routers.routers[0].free()
    await asyncio.sleep(SLOTS_S + 2 * RETRY_S + 1)
    assert routers.under_way == LIMIT - 1
    assert await fill(routers) == 1


@timeless
async def test_a_lone_router_and_a_share_below_one_let_requests_in():
    """A limit of one over four Routers without books is one at each: serving does not stop."""
    lone = Slots(None, lambda: None, lambda: 0.0)
    assert [await lone.take(KEY, 2) for _ in range(3)] == [True, True, False]
    routers = Cluster(4)
    assert [await router.take(KEY, 1) for router in routers.routers] == [True] + [False] * 3
    routers.routers[0].free()
    routers.lost = True
    await asyncio.sleep(1.5)
    assert [await router.take(KEY, 1) for router in routers.routers] == [True] * 4


def test_the_books_forget_a_router_that_is_not_heard_of():
    """Slots of a killed one are there again after four seconds, and not before."""
    now = [100.0]
    books = Books(lambda: now[0])
    assert books.hold("a", KEY, 4, 4, 3, 1) == (4, False, 1)
    assert books.hold("b", KEY, 4, 1, 0, 1) == (0, True, 2)
    now[0] += SLOTS_S - 0.1
    assert books.hold("b", KEY, 4, 1, 0, 1).slots == 0
    now[0] += 0.1
    assert books.hold("b", KEY, 4, 1, 0, 1).slots == 1
    assert books.hold("a", "other", 4, 4, 0, 1).slots == 4, "another key has its own"


def test_new_books_give_shares_until_they_have_heard_of_all_slots():
    """The first of two Routers that has lost its books gets half, whatever the other has."""
    now = [100.0]
    books = Books(lambda: now[0])
    assert books.hold("a", KEY, 4, 4, 0, 2).slots == 2
    now[0] += SLOTS_S
    assert books.hold("b", KEY, 4, 1, 1, 2).slots == 1
    assert books.hold("a", KEY, 4, 4, 0, 2).slots == 3
