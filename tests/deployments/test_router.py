"""The Router with stand-ins for the towers' handles: what it refuses, sends, merges and says."""

import asyncio

import numpy as np
import pytest

from deployments.config import AppConfig
from deployments.errors import (
    DeadlineError,
    FingerprintError,
    OverloadedError,
    RequestError,
    TowerUnavailableError,
)
from deployments.model.errors import ImageError, OptionError
from deployments.router import Router
from tests.deployments.fake_towers import WIDTH, Handle, Served, row

TEXT = "red apple"


@pytest.fixture
def images(golden) -> tuple[bytes, bytes]:
    """An image of an even number of bytes, and the same one with one byte more."""
    data = golden.image_bytes()[0]
    return data + b"\0" * (len(data) % 2), data + b"\0" * (1 - len(data) % 2)


async def test_rows_of_both_towers_come_in_the_requests_order(images):
    """Un-normalised, cut and normalised alike; usage, timings and makers are of this request."""
    served, (image, _) = Served(), images
    items = [{"image": image}, TEXT, {"text": "a much longer text"}, {"image": image}]
    answer = await served.router.embed(items, normalized=False)
    (chunk,) = served.text.chunks
    first, second = map(len, chunk.texts())
    lengths = [len(image), first, second, len(image)]
    np.testing.assert_array_equal(answer.embeddings, np.stack([row(x) for x in lengths]))
    assert (answer.usage.text_tokens, answer.usage.images) == (first + second, 2)
    assert answer.replicas == ("text:a", "vision:a")
    assert [part.split(":")[0] for part in answer.fingerprint.split()] == ["text", "vision"]
    assert (answer.timings.queue_ms, answer.timings.device_ms) == (1.0, 2.0)
    assert min(answer.timings.tokenise_ms, answer.timings.fetch_ms, answer.timings.towers_ms) > 0

    cut = (await served.router.embed([TEXT], dimensions=8)).embeddings
    np.testing.assert_allclose(cut[0], row(1)[:8] / np.linalg.norm(row(1)[:8]), rtol=1e-6)


@pytest.mark.parametrize(
    ("items", "options", "error", "message"),
    [
        ("a", {}, RequestError, "must be a list, not str"),
        ([], {}, RequestError, "empty"),
        (["a"] * 4, {}, RequestError, "4 items; the limit is 3"),
        ([1], {}, RequestError, "item 0 is neither"),
        (["a"], {"task": "retrieval.passage"}, OptionError, "'retrieval.passage'"),
        (["a"], {"dimensions": 193}, OptionError, "from 1 to 192"),
        (["a"], {"fingerprint": "abc"}, RequestError, "has the form"),
    ],
)
async def test_what_can_be_refused_is_refused_before_any_work(items, options, error, message):
    """No tower hears of it, and the message names value and limit."""
    served = Served(max_items_per_request=3)
    with pytest.raises(error, match=message):
        await served.router.embed(items, **options)
    assert served.text.chunks == []


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("task", ["retrieval.passage", 1, []]),
        ("dimensions", ["8", 8.0, True, 0, 193]),
        ("normalized", [None, 1, "yes"]),
        ("truncate", [None, 0, "end", np.zeros(2)]),
        ("lane", ["urgent", None, "Bulk", ["bulk"]]),
        ("timeout_s", [0, -1, float("nan"), "5", True, float("-inf")]),
        ("partial", [None, 1, "partial"]),
    ],
)
async def test_an_option_without_a_meaning_is_refused_before_anything_is_counted(
    counted, option, values
):
    """A caller by handle may send anything; each is one refusal, and no request of any lane."""
    served = Served()
    for value in values:
        with pytest.raises(OptionError, match=rf"^{option} is "):
            await served.router.embed([TEXT], **{option: value})
    assert dict(counted) == {("jina_clip_refusals", "OptionError"): len(values)}
    assert served.text.chunks == []
    for good in (np.float32(5), 5, float("inf"), None):
        await served.router.embed([TEXT], timeout_s=good, dimensions=np.int64(8))


async def test_a_modality_without_a_tower_is_refused(images):
    """The message says which tower is not there; the other modality is answered."""
    router = Router(AppConfig(), Handle("text"))
    with pytest.raises(RequestError, match="no images: it runs without the vision tower"):
        await router.embed([TEXT, {"image": images[0]}])
    assert (await router.embed([TEXT])).embeddings.shape == (1, WIDTH)
    router = Router(AppConfig(), None, Handle("vision"))
    with pytest.raises(RequestError, match="no texts: it runs without the text tower"):
        await router.embed([TEXT])


async def test_failures_of_every_stage_are_in_a_partial_answer(images):
    """One refused before the towers, one by a tower; without `partial` the first is raised."""
    served, (image, odd) = Served(), images
    items = [{"image": image}, {"image": odd}, TEXT, {"image": b"no image"}]
    answer = await served.router.embed(items, partial=True)
    assert {i: type(error) for i, error in answer.failures.items()} == {
        1: ImageError,
        3: ImageError,
    }
    assert [bool(x.any()) for x in answer.embeddings] == [True, False, True, False]
    with pytest.raises(ImageError, match="item 3"):  # before the towers are asked
        await served.router.embed(items)
    with pytest.raises(ImageError, match="item 1: cannot be decoded"):
        await served.router.embed(items[:3])


async def test_a_request_is_admitted_as_a_whole(images):
    """Its texts are not sent where its images are too many, and take nothing of their budget."""
    served = Served(max_queued_images=1)
    other = images[0] + b"\0\0"
    served.vision.gate.clear()
    waiting = await served.start([{"image": images[0]}])
    with pytest.raises(OverloadedError):
        await served.router.embed([TEXT, {"image": other}])
    assert served.text.chunks == []
    assert await served.outstanding() == (0, 1)
    served.vision.gate.set()
    await waiting
    assert await served.outstanding() == (0, 0)


async def test_time_that_runs_out_cancels_what_is_under_way(images):
    """Both towers' calls are cancelled and the budgets are free; the towers knew the limit."""
    served = Served()
    served.text.gate.clear(), served.vision.gate.clear()
    with pytest.raises(DeadlineError, match=r"0\.3 s"):
        await served.router.embed([TEXT, {"image": images[0]}], timeout_s=0.3)
    await asyncio.sleep(0)
    assert (served.text.cancelled, served.vision.cancelled) == (1, 1)
    assert 0 < served.text.chunks[0].terms.timeout_s < 0.3
    assert await served.outstanding() == (0, 0)


async def test_a_caller_who_leaves_cancels_what_is_under_way():
    """The towers need not compute for nobody."""
    served = Served()
    served.text.gate.clear()
    caller = await served.start([TEXT])
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await asyncio.sleep(0)
    assert served.text.cancelled == 1


async def test_texts_seen_before_are_answered_from_the_cache_and_images_are_not(images):
    """By default; the answer names the tower that made the row, and no replica."""
    served = Served()
    items = [TEXT, {"image": images[0]}]
    first, second = [await served.router.embed(items) for _ in range(2)]
    np.testing.assert_array_equal(first.embeddings, second.embeddings)
    assert (len(served.text.chunks), len(served.vision.chunks)) == (1, 2)
    assert second.fingerprint == first.fingerprint
    assert second.replicas == ("vision:a",)
    assert second.usage == first.usage


async def test_a_health_check_drops_the_rows_of_a_tower_that_was_replaced():
    """Though every request before it was answered from the cache; a silent tower is no fault."""
    served = Served()
    await served.router.check_health()
    assert served.text.asked == served.vision.asked == 0
    old = await served.router.embed([TEXT])
    served.text.fingerprint = "two"
    assert (await served.router.embed([TEXT])).fingerprint == old.fingerprint
    await served.router.check_health()
    assert served.vision.asked == 0
    new = await served.router.embed([TEXT])
    assert len(served.text.chunks) == 2
    assert new.fingerprint != old.fingerprint
    served.text.error = TowerUnavailableError("gone")
    await served.router.check_health()  # raises nothing


async def test_a_fingerprint_that_is_wanted_is_the_one_of_the_rows():
    """That of the answer passes, and one of a tower that the request does not use is not read."""
    served = Served()
    made_by = (await served.router.embed([TEXT])).fingerprint
    assert made_by == f"text:{(await served.router.fingerprints())['text']}"
    assert (await served.router.embed(["b"], fingerprint=made_by)).fingerprint == made_by
    await served.router.embed(["c"], fingerprint=f"{made_by} vision:0")
    with pytest.raises(FingerprintError, match=made_by.partition(":")[2]):
        await served.router.embed(["d"], fingerprint="text:0123456789abcdef")
    assert len(served.text.chunks) == 3


async def test_rows_of_a_tower_that_changed_meanwhile_are_refused():
    """The tower that was asked first had the wanted fingerprint, but another one made the row."""
    served = Served()
    wanted = (await served.router.embed([TEXT])).fingerprint
    served.text.fingerprint = "two"
    with pytest.raises(FingerprintError):
        await served.router.embed(["another text"], fingerprint=wanted)


async def test_an_answer_has_rows_of_one_checkpoint_while_another_is_rolled_out():
    """Its chunks may go to replicas of either; the smaller part is computed once more."""
    served = Served(max_tokens_per_chunk=64, max_chunks_in_flight=1)
    served.text.fingerprints = ["one", "two", "one"]
    answer = await served.router.embed(["one " * 40, "two " * 40])
    assert len(served.text.chunks) == 3
    assert answer.fingerprint == (await served.router.embed([TEXT])).fingerprint
    assert await served.outstanding() == (0, 0)


async def test_ready_means_that_every_tower_answers_and_none_is_stopping():
    """A Router that drains says how many requests are under way, and refuses new ones."""
    served = Served()
    assert await served.router.ready()
    served.vision.error = TowerUnavailableError("gone")
    assert not await served.router.ready()
    served.vision.error = None
    served.text.gate.clear()
    waiting = await served.start([TEXT])
    assert await served.router.drain() == 1
    assert not await served.router.ready()
    with pytest.raises(TowerUnavailableError, match="stopping"):
        await served.router.embed([TEXT])
    served.text.gate.set()
    assert (await waiting).embeddings.shape == (1, WIDTH)
    assert await served.router.drain() == 0


async def test_a_tower_that_sleeps_as_it_may_is_ready_and_is_not_woken():
    """Neither readiness nor health asks it; a fingerprint that is wanted of it does."""
    served = Served(text={"scaling": {"min_replicas": 0, "max_replicas": 2}})
    served.text.replicas = 0
    assert await served.router.ready()
    assert list(await served.router.fingerprints()) == ["vision"]
    assert served.text.asked == 0
    answer = await served.router.embed([TEXT])  # a request wakes it
    await served.router.check_health()
    assert served.text.asked == 0
    assert (await served.router.embed([TEXT])).fingerprint == answer.fingerprint
    fresh = Served(text={"scaling": {"min_replicas": 0, "max_replicas": 2}})
    fresh.text.replicas = 0
    await fresh.router.embed([TEXT], fingerprint=answer.fingerprint)
    assert fresh.text.asked == 1


async def test_a_tower_that_must_have_replicas_and_has_none_is_not_ready(monkeypatch):
    """It is asked, and does not answer; nor is one that may sleep but is broken while it runs."""
    monkeypatch.setattr("deployments.router.ANSWER_S", 0.05)
    served = Served(text={"scaling": {"min_replicas": 1, "max_replicas": 2}})
    served.text.replicas = 0
    served.text.gate.clear()
    assert not await served.router.ready()
    served = Served(text={"scaling": {"min_replicas": 0, "max_replicas": 2}})
    assert await served.router.ready()
    served.text.error = TowerUnavailableError("gone")
    assert not await served.router.ready()


async def test_new_targets_are_reported_to_the_policy():
    """Ray Serve gives them to a running Router."""
    router = Served().router
    router.reconfigure({"target_tokens_per_replica": 5})
    assert (await router.record_autoscaling_stats())["target_tokens_per_replica"] == 5.0
