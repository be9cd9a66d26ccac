"""Texts, images, ranks and widths, in a real browser."""

from typing import Any

import numpy as np

from serve_app import gallery

SLOW_S = 1.0
FULL_WIDTH = 192
NARROW = 64

SCRIPTS = {
    "pizza.png": "one more slice of pizza please",
    "hot-beverage.png": "我想喝一杯热咖啡",
    "automobile.png": "سيارة سريعة في الشارع",
    "rose.png": "बगीचे में लाल गुलाब",
}


def test_texts_of_four_scripts_find_their_images(visit: Any) -> None:
    """Each line is a query of its own, in Latin, Chinese, Arabic and Devanagari."""
    visit.search(*SCRIPTS.values())
    assert visit.firsts() == {text: file for file, text in SCRIPTS.items()}
    direction = "(text) => getComputedStyle([...document.querySelectorAll('h3')]"
    direction += ".find((x) => x.textContent === text)).direction"
    assert visit.tab.evaluate(direction, SCRIPTS["automobile.png"]) == "rtl"
    assert visit.tab.evaluate(direction, SCRIPTS["rose.png"]) == "ltr"


def test_typing_asks_once_it_pauses(visit: Any, stand_in: Any) -> None:
    """Keys in quick succession make one request, with the query task and no narrower width."""
    visit.tab.locator("#texts").press_sequentially("pizza", delay=10)
    visit.tab.wait_for_selector(".ranking")
    asked = {"model": stand_in.served.names[0], "task": "retrieval.query"}
    assert stand_in.bodies == [{**asked, "input": [{"text": "pizza"}]}]


def test_a_stale_answer_is_dropped(visit: Any, stand_in: Any) -> None:
    """An answer to older texts that comes after a newer one does not replace it."""
    visit.tab.fill("#texts", "slow train")
    stand_in.wait_until(lambda: len(stand_in.bodies) == 1)
    visit.search("pizza")
    visit.tab.wait_for_timeout(1000 * (SLOW_S + 0.5))
    assert list(visit.firsts()) == ["pizza"]


def test_scores_are_the_models_cosines(visit: Any, stand_in: Any) -> None:
    """The page's numbers at full width and at 64 are those of the model called directly."""
    visit.search("pizza")
    for width in (FULL_WIDTH, NARROW):
        visit.slide(width)
        shown = visit.tab.locator(".ranking .score").all_text_contents()
        names, scores = stand_in.scores("pizza", width)
        best = np.argsort(-scores)[: len(shown)]
        assert visit.order() == [names[i] for i in best]
        np.testing.assert_allclose(np.float64(shown), scores[best], atol=6e-4)


def test_the_slider_shows_how_ranks_change(visit: Any, stand_in: Any) -> None:
    """At 64 the arrows are the differences of the ranks; at full width there are none."""
    visit.search("pizza")
    full = visit.everything()
    assert visit.tab.locator(".move").count() == 0
    visit.slide(NARROW)
    narrow = visit.everything()
    assert narrow != full
    for place, card in enumerate(visit.tab.locator(".ranking li").all()[:12]):
        rise = full.index(narrow[place]) - place
        way = "up" if rise > 0 else "down"
        arrows = card.locator(".move .hidden").all_text_contents()
        assert arrows == ([f"{way} {abs(rise)} from the full width"] if rise else [])
    assert len(stand_in.bodies) == 1  # the slider itself asks nothing


def test_the_slider_works_from_the_keyboard(visit: Any) -> None:
    """Arrow keys move it and its value is announced as a width."""
    slider = visit.tab.locator("#width")
    slider.focus()
    slider.press("ArrowLeft")
    assert slider.get_attribute("aria-valuetext") == f"128 of {FULL_WIDTH}"


def test_a_dropped_image_searches_the_gallery(visit: Any) -> None:
    """An image of the gallery dropped on the query finds itself, and can be removed again."""
    visit.drop("#query-card", {"mine.png": (gallery.FOLDER / "bear.png").read_bytes()})
    visit.tab.wait_for_selector(".ranking")
    assert visit.firsts() == {"mine.png": "bear.png"}
    visit.tab.get_by_role("button", name="Remove mine.png").click()
    assert visit.tab.locator(".ranking").count() == 0


def test_a_pasted_image_is_a_query(visit: Any) -> None:
    """Pasting an image anywhere searches with it."""
    visit.paste({"pasted.png": (gallery.FOLDER / "rose.png").read_bytes()})
    visit.tab.wait_for_selector(".ranking")
    assert visit.firsts() == {"pasted.png": "rose.png"}


def test_own_images_are_ranked_and_a_broken_one_says_why(visit: Any) -> None:
    """Images dropped on the results become the collection; the API's words stand at a bad one."""
    names = ("pizza.png", "rose.png", "rocket.png")
    files = {f"my {name}": (gallery.FOLDER / name).read_bytes() for name in names}
    visit.drop("#results-card", files | {"broken.png": b"not an image"})
    visit.tab.wait_for_selector(".refused")
    assert "INPUT_IMAGE_INVALID" in visit.tab.locator(".refused").text_content()
    visit.search(SCRIPTS["rose.png"])
    assert visit.order()[0] == "my rose.png"
    assert sorted(visit.order()) == sorted(f"my {name}" for name in names)
    visit.tab.get_by_role("radio", name="Gallery 121").check()
    assert visit.firsts() == {SCRIPTS["rose.png"]: "rose.png"}


def test_the_heat_map_is_a_table_with_values(visit: Any, stand_in: Any) -> None:
    """Its cells hold the cosines of their row's text and their column's image."""
    visit.search("pizza", "guitar")
    table = visit.tab.locator("#heat table")
    columns = table.locator("thead th").all_text_contents()
    for row, text in enumerate(("pizza", "guitar")):
        by_name = dict(zip(*stand_in.scores(text, FULL_WIDTH), strict=True))
        line = table.locator("tbody tr").nth(row)
        assert line.locator("th[scope=row]").text_content() == text
        shown = np.float64(line.locator("td").all_text_contents())
        np.testing.assert_allclose(shown, [by_name[name] for name in columns], atol=6e-3)


def test_the_gallery_is_embedded_once_a_tab(visit: Any, stand_in: Any) -> None:
    """Opening the page again takes the vectors from the tab; forgetting them asks in chunks."""
    assert stand_in.bodies == []
    visit.tab.evaluate("sessionStorage.clear()")
    visit.tab.reload()
    stand_in.wait_until(lambda: sum(len(body["input"]) for body in stand_in.bodies) == 121)
    visit.tab.wait_for_selector("#progress", state="hidden")
    assert len(stand_in.bodies) > 1
    assert {body["priority"] for body in stand_in.bodies} == {"bulk"}
