"""The generated week against the published distribution."""

import numpy as np
import pytest

from deployments.plan.load import Load
from deployments.plan.traffic import Traffic
from deployments.plan.week import generate_week


@pytest.fixture(scope="module")
def week() -> Traffic:
    return generate_week(seed=3)


def per_minute(load: Load, weights: np.ndarray | None = None) -> np.ndarray:
    return np.bincount((load.arrival_s // 60).astype(int), weights=weights)


@pytest.mark.parametrize(
    ("images", "share"), [(1, 0.66), (4, 0.71), (9, 0.86), (25, 0.92), (100, 0.94), (300, 0.96)]
)
def test_images_per_request_have_the_published_shares(
    week: Traffic, images: int, share: float
) -> None:
    """The share of requests with up to so many images is within a point of the published one."""
    assert (week.vision.cost <= images).mean() == pytest.approx(share, abs=0.01)


def test_the_largest_requests_have_thousands_of_images(week: Traffic) -> None:
    """The published largest is about 9,000."""
    assert 4_000 < week.vision.cost.max() <= 9_000


def test_text_lengths_have_the_published_percentiles(week: Traffic) -> None:
    """Median 750 tokens, 90th percentile 3,500, 99th 10,000."""
    found = np.percentile(week.text.cost, [50, 90, 99])
    assert found == pytest.approx([750, 3_500, 10_000], rel=0.03)


def test_requests_per_minute_stay_in_the_published_range(week: Traffic) -> None:
    """50 to 150 text requests; 20 to 200 image requests, with spikes to 450 (Poisson besides)."""
    text, images = per_minute(week.text), per_minute(week.vision)
    assert np.percentile(text, 1) > 35
    assert np.percentile(text, 99) < 180
    assert np.percentile(images, 1) > 15
    assert np.percentile(images, 99) < 240
    assert 250 < images.max() < 520


def test_images_jump_in_four_episodes_while_requests_do_not(week: Traffic) -> None:
    """Floor 200-1,000 images a minute, four episodes of hours at 5,000-22,000, same requests."""
    images = per_minute(week.vision, week.vision.cost)
    smooth = np.convolve(images, np.ones(15) / 15, mode="same")
    episode = smooth > 3_000
    assert np.flatnonzero(np.diff(episode.astype(int)) == 1).size == 4
    assert 4 * 4 * 60 <= episode.sum() <= 4 * 12 * 60 + 60
    assert 200 <= np.median(images[~episode]) <= 1_000
    assert np.percentile(images[episode], 5) >= 5_000
    assert np.percentile(images[episode], 95) <= 22_000
    requests = per_minute(week.vision)
    assert requests[episode].mean() == pytest.approx(requests[~episode].mean(), rel=0.25)


def test_a_seed_gives_the_same_week_and_another_a_different_one() -> None:
    """Drawing is reproducible."""
    one, same, other = (generate_week(scale=0.01, seed=seed).vision for seed in (5, 5, 6))
    assert (one.arrival_s == same.arrival_s).all()
    assert (one.cost == same.cost).all()
    assert len(one.cost) != len(other.cost) or (one.cost != other.cost).any()


def test_scale_multiplies_the_users_of_a_week(week: Traffic) -> None:
    """A fifth of the scale has a fifth of the requests, of the same sizes."""
    small = generate_week(scale=0.2, seed=3)
    assert len(small.text.cost) == pytest.approx(len(week.text.cost) / 5, rel=0.02)
    assert (small.vision.cost == 1).mean() == pytest.approx(0.66, abs=0.01)
