"""A key's rate over several Routers: leased, held together, and without the books by shares."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from serve_app.api.leases import BOOKS, CALL_TIMEOUT_S, LEASE_S, RETRY_S, Books, Rate, ask_actor

KEY = "k"


class Cluster:
    """Routers around one set of books, on a clock that stands still until it is moved."""

    def __init__(self, num_routers: int) -> None:
        self.now_s, self.calls, self.alone, self.lost = 1000.0, 0, 0, False
        self.books = Books(lambda: self.now_s)
        self.routers = [self.router(f"r{number}") for number in range(num_routers)]

    def router(self, name: str) -> Rate:
        async def ask(method: str, *arguments: str | int) -> tuple[float, ...]:
            self.calls += 1
            if self.lost:
                raise ConnectionError("the actor is gone")
            return (*getattr(self.books, method)(name, *arguments),)  # its classes are not ours

        return Rate(ask, self.count_alone, lambda: self.now_s)

    def count_alone(self) -> None:
        self.alone += 1

    async def send(self, seconds: float, per_s: float, per_minute: int) -> int:
        """Let each Router be asked evenly so often; return how many requests were let in."""
        step_s = 1 / (per_s * len(self.routers))
        let_in = 0
        for number in range(round(seconds / step_s)):
            self.now_s += step_s
            router = self.routers[number % len(self.routers)]
            let_in += await router.take(KEY, per_minute) == 0
        return let_in


@pytest.mark.parametrize("num_routers", [1, 2, 4])
async def test_a_rate_holds_for_all_routers_together(num_routers):
    """600 a minute, asked for 40 times a second at each: a minute's at once, then 10 a second."""
    cluster = Cluster(num_routers)
    await cluster.send(60, 40, 600)
    let_in = await cluster.send(120, 40, 600)
    assert let_in == pytest.approx(1200, rel=0.05)


async def test_the_rate_holds_while_routers_come_and_go():
    """1 -> 4 -> 1 Routers: within 5% of 600 a minute over the whole time."""
    cluster = Cluster(1)
    await cluster.send(60, 40, 600)
    let_in = await cluster.send(60, 40, 600)
    cluster.routers += [cluster.router(f"new{number}") for number in range(3)]
    let_in += await cluster.send(60, 40, 600)
    cluster.routers = cluster.routers[:1]
    let_in += await cluster.send(60, 40, 600)
    assert let_in == pytest.approx(1800, rel=0.05)


async def test_a_key_within_its_rate_is_never_refused():
    """Eight a second over four Routers, of ten allowed: all are let in, with few calls."""
    cluster = Cluster(4)
    assert await cluster.send(300, 2, 600) == 2400
    assert cluster.calls < 2400 / 3


async def test_few_requests_at_many_routers_use_up_no_more_than_they_are():
    """Five a second over twelve Routers, of ten allowed: a minute's burst is there all the time."""
    cluster = Cluster(12)
    assert await cluster.send(300, 5 / 12, 600) == 1500
    burst = [await router.take(KEY, 600) for router in cluster.routers for _ in range(60)]
    assert burst.count(0) == pytest.approx(600, rel=0.05)  # what Routers have leased comes on top


async def test_no_more_is_given_back_than_was_taken():
    """Slow requests first, so that leases are given back; then as many as ever are let in."""
    cluster = Cluster(4)
    await cluster.send(60, 1, 600)
    await cluster.send(60, 40, 600)
    assert await cluster.send(120, 40, 600) == pytest.approx(1200, rel=0.05)


async def test_a_full_key_is_refused_without_a_call():
    """Until the next request can be had, the books are not asked again."""
    cluster = Cluster(1)
    while not await cluster.routers[0].take(KEY, 60):
        pass
    calls = cluster.calls
    assert [await cluster.routers[0].take(KEY, 60) for _ in range(50)] == [1.0] * 50
    assert cluster.calls == calls


async def test_a_lease_runs_out():
    """What a Router has not used after two seconds it asks for again."""
    cluster = Cluster(1)
    (router,) = cluster.routers
    assert [await router.take(KEY, 600) for _ in range(2)] == [0, 0]
    assert cluster.calls == 1
    cluster.now_s += LEASE_S
    assert await router.take(KEY, 600) == 0
    assert cluster.calls == 2


async def test_without_the_books_each_router_goes_on_with_its_share():
    """Lost: a quarter of the rate at each of four, counted, and asked for again each second."""
    cluster = Cluster(4)
    await cluster.send(120, 40, 600)
    cluster.lost = True
    cluster.calls, before = 0, cluster.alone
    let_in = await cluster.send(60, 40, 600)
    assert let_in == pytest.approx(600, rel=0.05)
    assert cluster.alone - before == pytest.approx(let_in, abs=45)
    assert cluster.calls <= 4 * (60 / RETRY_S + 1)
    cluster.lost = False
    await cluster.send(5, 40, 600)
    alone = cluster.alone
    assert await cluster.send(60, 40, 600) == pytest.approx(600, rel=0.05)
    assert cluster.alone == alone


async def test_books_that_start_anew_do_not_give_a_minute_s_requests_once_more():
    """The Routers had some before; one that comes after them finds the key known."""
    cluster = Cluster(2)
    await cluster.send(60, 40, 600)
    cluster.books = Books(lambda: cluster.now_s)
    cluster.routers.append(cluster.router("new"))
    assert await cluster.send(60, 40, 600) == pytest.approx(600, rel=0.05)


async def test_a_share_below_one_lets_requests_in():
    """Without the books, two a minute over four Routers are one every two minutes at each."""
    cluster = Cluster(4)
    for router in cluster.routers:
        await router.take(KEY, 2)
    last, cluster.lost = cluster.routers[3], True
    let_in = 0
    for _ in range(601):
        cluster.now_s += 1
        let_in += await last.take(KEY, 2) == 0
    assert let_in == pytest.approx(5, abs=1)


async def test_books_that_do_not_answer_cost_one_wait(monkeypatch):
    """A call that hangs ends, and until the next try no request waits for one."""
    monkeypatch.setattr("serve_app.api.leases.CALL_TIMEOUT_S", CALL_TIMEOUT_S / 50)
    calls = []

    async def ask(method: str, *_arguments: str | int) -> tuple[float, ...]:
        calls.append(method)
        await asyncio.Event().wait()
        raise AssertionError

    router = Rate(ask, lambda: None, lambda: 1000.0)
    waits = [await router.take(KEY, 600) for _ in range(20)]
    assert len(calls) == 1
    assert all(0 < wait_s <= 60 / 600 for wait_s in waits)


async def test_books_are_looked_up_beside_the_requests(monkeypatch):
    """Without Ray's head node that takes a minute: the event loop goes on, and it is done once."""
    gate, looked_up = threading.Event(), []

    async def lease(_router: str, *_arguments: str | int) -> tuple[float, ...]:
        return 1, 0.0, 1

    def look_up(name: str) -> object:
        looked_up.append(name)
        gate.wait(2)
        return SimpleNamespace(lease=SimpleNamespace(remote=lease))

    monkeypatch.setattr("ray.serve.get_deployment_actor", look_up)
    ask = ask_actor()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask("lease", KEY, 60), 0.01)
    gate.set()
    assert await ask("lease", KEY, 60) == (1, 0.0, 1)
    assert looked_up == [BOOKS]


async def test_books_that_are_lost_are_looked_up_anew(monkeypatch):
    """An actor that was started again is another."""
    found = [ConnectionError("not yet"), "dead", "new"]

    def look_up(_name: str) -> object:
        which = found.pop(0)
        if isinstance(which, Exception):
            raise which

        async def lease(*_arguments: str | int) -> tuple[float, ...]:
            if which == "dead":
                raise ConnectionError(which)
            return 1, 0.0, 1

        return SimpleNamespace(lease=SimpleNamespace(remote=lease))

    monkeypatch.setattr("ray.serve.get_deployment_actor", look_up)
    ask = ask_actor()
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await ask("lease", KEY, 60)
    assert [await ask("lease", KEY, 60) for _ in range(2)] == [(1, 0.0, 1)] * 2
    assert not found


async def test_other_keys_have_their_own_rates():
    """One that is used up does not take from another."""
    books = Books(lambda: 0.0)
    assert books.lease("r", "a", 60).requests == 1
    while books.lease("r", "a", 60).requests:
        pass
    assert books.lease("r", "b", 120) == (2, 0.0, 1)
