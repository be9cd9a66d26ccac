"""The tab that scores labels, in a real browser."""

import math
from typing import Any

import numpy as np

from serve_app import gallery
from tests.serve_app.playground.page.test_page import run_snippet

LABELS = ["an apple", "a bear", "an airplane"]
ROWS = """() => [...document.querySelectorAll("#scores tbody tr")].map((row) =>
    [...row.querySelectorAll("td")].map((cell) => parseFloat(cell.textContent)))"""


def classify(visit: Any, texts: list[str], labels: list[str], rows: int) -> np.ndarray:
    """Fill in the tab, and wait for a table of so many rows; returns the percentages."""
    visit.tab.locator("input[name=view][value=classify]").check()
    visit.tab.fill("#labels", "\n".join(labels))
    visit.tab.fill("#texts", "\n".join(texts))
    wanted = [rows, labels]
    script = """([rows, labels]) => document.querySelectorAll("#scores tbody tr").length === rows &&
        labels.join() === [...document.querySelectorAll("#scores thead th")]
            .map((x) => x.textContent).join()"""
    visit.tab.wait_for_function(script, arg=wanted)
    return np.array(visit.tab.evaluate(ROWS))


def probabilities(stand_in: Any, rows: np.ndarray) -> np.ndarray:
    """By the model itself, in percent."""
    logits = math.exp(stand_in.model.logit_scale) * rows @ stand_in.model.encode_text(LABELS).T
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    return 100 * scores / scores.sum(axis=1, keepdims=True)


def test_texts_and_images_get_the_models_probabilities(visit: Any, stand_in: Any) -> None:
    """An image that was dropped is a row too; the best of each row is set off."""
    shown = classify(visit, ["bears"], LABELS, 1)
    visit.drop("#query-card", {"bear.png": (gallery.FOLDER / "bear.png").read_bytes()})
    visit.tab.wait_for_function("() => document.querySelectorAll('#scores tbody tr').length === 2")
    shown = np.array(visit.tab.evaluate(ROWS))
    image = stand_in.model.encode_image([(gallery.FOLDER / "bear.png").read_bytes()])
    rows = np.concatenate([stand_in.model.encode_text(["bears"]), image])
    np.testing.assert_allclose(shown, probabilities(stand_in, rows), atol=0.06)
    best = visit.tab.locator("#scores strong").all_text_contents()
    assert [float(x.rstrip("%")) for x in best] == shown.max(axis=1).tolist()


def test_the_copied_request_gives_the_labels_of_the_page(visit: Any) -> None:
    """As it is copied for Python, it prints the best label of each."""
    shown = classify(visit, ["bears", "flying"], LABELS, 2)
    visit.tab.locator("input[value=python]").check()
    labels = run_snippet(visit, "python", "labels")
    assert labels == [LABELS[i] for i in shown.argmax(axis=1)]


def test_what_is_missing_is_said_and_searching_goes_on(visit: Any) -> None:
    """One label is no choice; back in the other tab the rankings are there."""
    classify(visit, ["bears"], LABELS, 1)
    visit.tab.fill("#labels", "alone")
    visit.tab.wait_for_selector("#scores-status:has-text('two labels')")
    assert visit.tab.locator("#scores table").count() == 0
    visit.tab.locator("input[name=view][value=search]").check()
    visit.search("bears")
    assert visit.tab.locator("#scores-card").is_hidden()
