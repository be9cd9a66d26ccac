"""Verifies the published weights: numbers that others published, computed again here.

Sources: `lora_vs_official_comparison.json` of a public re-implementation for the ten components,
the transformers.js block of the model card for the scores.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from deployments.model.output import Rows
from serve_app.doctor.finding import Finding, fails, ok, warning

QUERY_TASK = "retrieval.query"
TEXT = "A beautiful sunset over the beach"
# The same vector twice: by the published code in bfloat16, and with higher precision.
COMPONENTS = np.array(
    [
        [0.033447, 0.037598, -0.089355, -0.132812, -0.058105],
        [-0.020264, -0.104980, 0.075684, -0.104004, -0.176758],
        [0.03361207, 0.03745395, -0.09021594, -0.13160348, -0.05931629],
        [-0.02015974, -0.10507318, 0.07590983, -0.10313325, -0.17582242],
    ],
    dtype=np.float32,
).reshape(2, 10)
COMPONENT_TOLERANCE = 2e-3

QUERY = "beautiful sunset over the beach"
CARD = {
    "غروب جميل على الشاطئ": 0.55666,
    "海滩上美丽的日落": 0.70284,
    "Un beau coucher de soleil sur la plage": 0.58226,
    "Ein wunderschöner Sonnenuntergang am Strand": 0.66480,
    "Ένα όμορφο ηλιοβασίλεμα πάνω από την παραλία": 0.54620,
    "समुद्र तट पर एक खूबसूरत सूर्यास्त": 0.67916,
    "Un bellissimo tramonto sulla spiaggia": 0.61924,
    "浜辺に沈む美しい夕日": 0.62587,
    "해변 위로 아름다운 일몰": 0.64537,
}
IMAGE_URLS = ("https://i.ibb.co/nQNGqL0/beach1.jpg", "https://i.ibb.co/r5w8hG8/beach2.jpg")
TEXT_IMAGE = (0.29530, 0.31836)
IMAGE_IMAGE = 0.93445
SCORE_TOLERANCE = 0.03  # the precision behind the card's numbers is not published
SUSPECTS = "the weights may be the published ones, but this build computes something else"


class Encoder(Protocol):
    """What computes the vectors; `deployments.model.ClipModel` is one."""

    def encode_text(self, texts: Sequence[str], task: str | None = None) -> Rows:
        """Return normalised rows of full width."""

    def encode_image(self, images: Sequence[bytes]) -> Rows:
        """Return normalised rows of full width."""


def verify(encoder: Encoder, fetch: Callable[[str], bytes]) -> list[Finding]:
    """Compute all published numbers that can be had.

    Args:
        encoder: the published weights as this product runs them.
        fetch: downloads a URL; raises OSError where it cannot.
    """
    query = encoder.encode_text([QUERY], QUERY_TASK)[0]
    return [text_vector(encoder), *text_scores(encoder, query), image_scores(encoder, query, fetch)]


def text_vector(encoder: Encoder) -> Finding:
    """Compare ten components of one text's vector."""
    row = encoder.encode_text([TEXT])[0][: COMPONENTS.shape[1]]
    gap = float(np.abs(row - COMPONENTS).max(axis=1).min())
    found = f"ten components of {TEXT!r} differ by {gap:.1e} at most; {COMPONENT_TOLERANCE:.0e} may"
    if gap <= COMPONENT_TOLERANCE:
        return ok("published vector", found)
    return fails("published vector", found, f"{SUSPECTS}: adapter, rotary base or pooling")


def text_scores(encoder: Encoder, query: Rows) -> list[Finding]:
    """Compare the scores of the card's nine translations, and their order."""
    scores = encoder.encode_text(list(CARD)) @ query
    wanted = np.array(list(CARD.values()))
    gap = float(np.abs(scores - wanted).max())
    same_order = np.array_equal(np.argsort(-scores), np.argsort(-wanted))
    found = f"nine scores of the model card differ by {gap:.4f} at most; {SCORE_TOLERANCE} may"
    order = "the order of the card" if same_order else "another order than the card's"
    return [
        _judged("published text scores", gap <= SCORE_TOLERANCE, found),
        _judged("published ranking", same_order, f"the nine translations rank in {order}"),
    ]


def image_scores(encoder: Encoder, query: Rows, fetch: Callable[[str], bytes]) -> Finding:
    """Compare the scores of the card's two images, where they can be downloaded."""
    try:
        images = [fetch(url) for url in IMAGE_URLS]
    except OSError as error:
        advice = f"run this where {', '.join(IMAGE_URLS)} can be reached, if you want it verified"
        return warning("published image scores", f"not verified: {error}", advice)
    rows = encoder.encode_image(images)
    scores = [*(rows @ query), float(rows[0] @ rows[1])]
    gap = float(np.abs(np.array(scores) - np.array([*TEXT_IMAGE, IMAGE_IMAGE])).max())
    found = f"three scores of the card's images differ by {gap:.4f}; {SCORE_TOLERANCE} may"
    return _judged("published image scores", gap <= SCORE_TOLERANCE, found)


def _judged(topic: str, passed: bool, found: str) -> Finding:
    return ok(topic, found) if passed else fails(topic, found, SUSPECTS)
