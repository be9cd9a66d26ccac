"""A request that finds a tower scaled to zero, and a tower that does not wake."""

import asyncio
import pickle

import pytest

from deployments.errors import DeadlineError, TowerUnavailableError
from deployments.routing.sleep import FRESH_S, PATIENCE, Sleep
from serve_app.api.errors import fault_of, headers_of
from serve_app.gallery import FOLDER
from tests.deployments.fake_towers import Served

SLEEPY = {"scaling": {"min_replicas": 0, "max_replicas": 1}}
BEAR = (FOLDER / "bear.png").read_bytes()
IMAGE = {"image": BEAR + b"\0" * (len(BEAR) % 2)}


class Time:
    """A clock that stands still until it is moved."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def served(monkeypatch):
    """A function that returns a Router beside a vision tower that sleeps, and its clock."""

    def make(asleep: str) -> tuple[Served, Time]:
        clock = Time()
        monkeypatch.setattr(
            "deployments.routing.tower_client.Sleep", lambda *of: Sleep(*of, clock=clock)
        )
        served = Served(vision=SLEEPY, asleep=asleep)
        served.vision.replicas = 0
        return served, clock

    return make


async def embed_image(served: Served, **options):
    return await served.router.embed([IMAGE], **options)


async def test_held_requests_wait_for_the_start_and_end_at_their_deadline(served):
    """As it is by default: the answer comes with the replica, or the time is up."""
    router, _ = served("hold")
    router.vision.gate.clear()
    with pytest.raises(DeadlineError):
        await embed_image(router, timeout_s=0.05)
    waiting = asyncio.create_task(embed_image(router))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    router.vision.gate.set()
    assert len((await waiting).embeddings) == 1


async def test_refused_requests_are_told_when_the_tower_will_be_there(served):
    """The whole start at first, then what is left of it; texts are answered all the time."""
    router, clock = served("refuse")
    for passed_s, left_s in ((0.0, 40.0), (30.0, 10.0), (30.0, 1.0)):
        clock.now_s += passed_s
        with pytest.raises(TowerUnavailableError, match="sleeps") as refused:
            await embed_image(router)
        assert refused.value.retry_after_s == pytest.approx(left_s)
        assert len((await router.router.embed(["a text"])).embeddings) == 1
    assert router.vision.chunks == []
    assert await router.outstanding() == (0, 0)
    stats = await router.router.record_autoscaling_stats()
    assert stats["images_arrived_total"] == 3, "which wakes the tower"
    router.vision.replicas = 1
    assert len((await embed_image(router)).embeddings) == 1


async def test_a_tower_that_answers_is_not_looked_for_before_each_request(served):
    """Only one that was silent for a while is; and where all known rows do, none is."""
    router, clock = served("refuse")
    router.vision.replicas = 1
    for _ in range(5):
        await embed_image(router)
    assert router.vision.asked == 1
    clock.now_s += FRESH_S
    router.vision.replicas = 0
    with pytest.raises(TowerUnavailableError):
        await embed_image(router)


def test_the_refusal_is_a_503_that_survives_the_way_between_processes():
    """With the seconds in both headers."""
    error = pickle.loads(pickle.dumps(TowerUnavailableError("it sleeps", 38.2)))
    assert str(error) == "it sleeps"
    assert fault_of(error, "id")[0] == 503
    assert headers_of(error) == {"retry-after": "39", "retry-after-ms": "38200"}


@pytest.mark.parametrize("asleep", ["hold", "refuse"])
async def test_a_tower_that_was_asked_for_and_does_not_start_is_not_ready(
    served, asleep, monkeypatch
):
    """Asleep it is, and while it may still come; after three start-ups it has failed."""
    monkeypatch.setattr("deployments.router.ANSWER_S", 0.05)
    router, clock = served(asleep)
    assert await router.router.ready()
    clock.now_s += 1000.0
    router.vision.gate.clear()  # whoever asks waits for a replica
    with pytest.raises((DeadlineError, TowerUnavailableError)):
        await embed_image(router, timeout_s=0.05)
    clock.now_s += PATIENCE * 40.0 - 1
    assert await router.router.ready()
    clock.now_s += 2
    assert not await router.router.ready()
    router.vision.replicas = 1
    router.vision.gate.set()
    assert await router.router.ready()
    router.vision.replicas = 0  # and it sleeps again
    clock.now_s += 1000.0
    assert await router.router.ready()


async def test_a_failed_tower_is_asked_for_by_probes_so_that_it_can_come_back(served, monkeypatch):
    """Nobody sends requests to a service that is not ready."""
    monkeypatch.setattr("deployments.router.ANSWER_S", 0.05)
    router, clock = served("refuse")
    with pytest.raises(TowerUnavailableError):
        await embed_image(router)
    assert await router.router.ready()
    assert router.vision.asked == 0
    clock.now_s += PATIENCE * 40.0 + 1
    assert await router.router.ready()  # the stand-in answers who asks it
    assert router.vision.asked == 1
