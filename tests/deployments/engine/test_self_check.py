"""The self-check: its inputs, its measure, and when a tower is not to be trusted."""

import logging
from concurrent.futures import Future

import numpy as np
import pytest

from deployments.engine import self_check
from deployments.engine.self_check import STUCK_S, SelfCheck
from deployments.model.weights.source import DEMO

ROWS = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
BATCHES = ((np.array([0]), np.array([1])), (np.array([2]),))


def embed(batch):
    return np.stack([2 * ROWS[int(item[0])] for item in batch])


def cosine(embed, batches, expected):
    return self_check.lowest_cosine(self_check.embed_all(embed, batches), expected)


def test_rows_of_another_length_pass_and_one_row_that_points_elsewhere_does_not():
    """The lowest cosine decides, over all batches in their order."""
    right = cosine(embed, BATCHES, ROWS)
    assert right == pytest.approx(1, abs=1e-6)
    assert self_check.passes(right)
    swapped = cosine(embed, BATCHES, ROWS[[0, 2, 1]])
    assert not self_check.passes(swapped)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_a_row_that_is_not_finite_or_zero_never_passes(bad):
    """NaN compares false with everything; that counts as wrong."""
    rows = ROWS.copy()
    rows[1] = bad
    assert not self_check.passes(self_check.lowest_cosine(rows, ROWS))
    assert self_check.passes(self_check.lowest_cosine(ROWS, ROWS))


def test_the_threshold_lies_between_half_precision_and_a_wrong_kernel():
    """An error of 1% of a row's length passes, one of 30% does not."""
    noise = np.random.default_rng(1).normal(size=ROWS.shape).astype(np.float32)
    noise *= np.linalg.norm(ROWS, axis=1, keepdims=True) / np.linalg.norm(
        noise, axis=1, keepdims=True
    )
    assert self_check.passes(self_check.lowest_cosine(ROWS + 0.01 * noise, ROWS))
    assert not self_check.passes(self_check.lowest_cosine(ROWS + 0.3 * noise, ROWS))


def test_texts_are_of_many_scripts_and_one_is_exactly_as_long_as_asked(demo):
    """The long text runs in a batch of its own, since long texts may have a kernel of theirs."""
    short, (long,) = self_check.pinned_texts(
        lambda texts: demo.tokenizer.encode(texts, max_length=300, truncate=True), 300
    )
    assert len(long) == 300
    assert min(map(len, short)) == 2
    assert len({ids.tobytes() for ids in short}) == len(self_check.SENTENCES)


def test_images_differ_and_are_the_same_every_time():
    """They are made from formulas and a fixed seed, at the size of the checkpoint."""
    ((smooth, edges),) = self_check.pinned_images(120)
    assert smooth.shape == edges.shape == (120, 120, 3)
    assert smooth.dtype == edges.dtype == np.uint8
    assert np.abs(np.diff(edges.astype(int), axis=0)).max() > 150
    assert np.abs(np.diff(smooth.astype(int), axis=0)).max() < 10
    np.testing.assert_array_equal(edges, self_check.pinned_images(120)[0][1])


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_the_rows_of_the_shipped_checkpoint_pass_only_in_its_order(demo, tower):
    """Vectors that third-party towers computed are what this model gives; reversed they are not."""
    batches, expected = self_check.shipped_rows(DEMO, tower)
    embedding = demo.embed_tokens if tower == "text" else demo.embed_pixels
    assert cosine(embedding, batches, expected) > 0.99999
    assert not self_check.passes(cosine(embedding, batches, expected[::-1]))


class Thread:
    """Stands for the device's thread: what is submitted ends when the test says so."""

    def __init__(self):
        self.waiting = []

    def submit(self, function):
        self.waiting.append((Future(), function))
        return self.waiting[-1][0]

    def finish(self):
        future, function = self.waiting.pop()
        try:
            future.set_result(function())
        except Exception as error:  # noqa: BLE001 - as an executor does
            future.set_exception(error)


@pytest.fixture
def scene():
    class Scene(Thread):
        now_s, cosine = 0.0, 1.0

        def run(self):
            if isinstance(self.cosine, Exception):
                raise self.cosine
            return self.cosine

    scene = Scene()
    scene.check = SelfCheck(scene.run, 300, lambda: scene.now_s)
    scene.check.accept(0.9998)
    return scene


def test_a_replica_below_the_threshold_does_not_start(monkeypatch):
    """Just above it, it serves with a warning; near float32 without one."""
    logger, levels = logging.Logger("of the test", logging.WARNING), []
    handler = logging.Handler()
    handler.emit = lambda record: levels.append(record.levelname)
    logger.addHandler(handler)
    monkeypatch.setattr(self_check, "logger", logger)
    check = SelfCheck(lambda: 0.9, 300)
    for cosine in (0.97, float("nan")):
        with pytest.raises(RuntimeError, match=r"below 0\.98"):
            check.accept(cosine)
    check.accept(0.99)
    check.accept(0.9991)
    assert levels == ["WARNING"]
    assert check.cosine == 0.9991


def test_it_runs_again_after_the_period_and_only_then(scene):
    """One run at a time, on the device's thread."""
    scene.now_s = 299
    scene.check.poll(scene.submit)
    assert scene.waiting == []
    scene.now_s = 300
    scene.check.poll(scene.submit)
    scene.check.poll(scene.submit)
    assert len(scene.waiting) == 1
    assert scene.check.is_running
    scene.finish()
    assert not scene.check.is_running


@pytest.mark.parametrize("cosine", [0.9998, float("nan"), ValueError("wrong shape")])
def test_a_replica_that_drifts_fails_its_health_check_from_then_on(scene, cosine):
    """A low cosine, NaN or an error in the run: each makes it unhealthy until it is replaced."""
    scene.now_s, scene.cosine = 300, cosine
    scene.check.poll(scene.submit)
    scene.finish()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="self-check"):
            scene.check.poll(scene.submit)


def test_lack_of_memory_says_nothing_about_the_rows(scene):
    """The replica stays healthy, and the check comes again a period later."""
    scene.now_s, scene.cosine = 300, MemoryError()
    scene.check.poll(scene.submit)
    scene.finish()
    scene.check.poll(scene.submit)
    assert scene.check.cosine == 0.9998
    scene.now_s = 600
    scene.check.poll(scene.submit)
    assert scene.check.is_running


def test_a_check_that_never_ends_is_a_stuck_device(scene):
    """Behind a slow batch it may wait, but not for ever."""
    scene.now_s = 300
    scene.check.poll(scene.submit)
    scene.now_s = 300 + STUCK_S
    scene.check.poll(scene.submit)
    scene.now_s += 1
    with pytest.raises(RuntimeError, match="not ended"):
        scene.check.poll(scene.submit)


def test_a_period_of_zero_means_never_again():
    """Only the check before serving is left."""
    check = SelfCheck(lambda: 0.0, 0, lambda: 1e9)
    check.accept(1.0)
    check.poll(lambda _: pytest.fail("it ran"))
