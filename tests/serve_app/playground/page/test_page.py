"""The request to copy, the panel, errors, keys, and the page on a phone, in a real browser."""

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from serve_app import gallery

KEY = "a key of the test"
NARROW = 64
PHONE = {"width": 360, "height": 740}


@pytest.mark.parametrize("language", ["curl", "python", "javascript"])
def test_the_copied_request_gives_the_vectors_of_the_page(
    visit: Any, stand_in: Any, language: str
) -> None:
    """Run as copied, it answers with the model's vectors of texts and images at that width."""
    text = "it's \"quoted\" \\ $HOME ' \u0437\u0438\u043c\u0430"
    visit.search(text)
    visit.drop("#query-card", {"bear.png": (gallery.FOLDER / "bear.png").read_bytes()})
    visit.tab.wait_for_function("() => document.querySelectorAll('.ranking').length === 2")
    visit.slide(NARROW)
    visit.tab.locator(f"input[value={language}]").check()
    rows = np.float32(run_snippet(visit, language))
    expected = np.concatenate(
        [
            stand_in.model.encode_text([text], "retrieval.query", NARROW),
            stand_in.model.encode_image([(gallery.FOLDER / "bear.png").read_bytes()], NARROW),
        ]
    )
    np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_the_panel_shows_stages_request_and_replicas(visit: Any) -> None:
    """What the headers of the answer say is in the panel."""
    visit.search("pizza")
    panel = visit.tab.locator("#timing").inner_text()
    for words in ("on the device", "6.5 ms", "request-of-the-test", "text:a1, vision:b2"):
        assert words in panel


def test_an_error_is_shown_as_the_api_says_it(visit: Any, stand_in: Any) -> None:
    """Detail and code of a refusal are on the page, and go once a request is answered."""
    visit.tab.fill("#texts", "word " * 9000)
    problem = visit.tab.get_by_role("alert")
    problem.wait_for()
    assert "the limit is 8,192" in problem.inner_text()
    assert "INPUT_TOKEN_LIMIT_EXCEEDED" in problem.inner_text()
    visit.search("pizza")
    assert problem.is_hidden()
    assert "status of 400" in visit.said.pop()  # the browser's own line about the answer


def test_a_key_is_asked_for_and_used(visit: Any, stand_in: Any) -> None:
    """After a 401 the page asks for a key, sends it, and does not write it into the request."""
    stand_in.key = KEY
    visit.tab.reload()
    visit.tab.locator("#key").fill(KEY)
    assert "AUTH_MISSING_API_KEY" in visit.tab.get_by_role("alert").inner_text()
    visit.tab.get_by_role("button", name="Use this key").click()
    visit.search("pizza")
    assert visit.tab.locator("#problem").is_hidden()
    snippet = visit.tab.locator("#snippet").text_content()
    assert "Bearer $API_KEY" in snippet
    assert KEY not in snippet
    assert "status of 401" in visit.said.pop()


def test_a_phone_needs_no_sideways_scrolling(visit: Any) -> None:
    """At 360 px nothing is wider than the screen, with results, tables and a long word."""
    visit.tab.set_viewport_size(PHONE)
    visit.search(
        "\u0443\u0442\u0440\u043e",
        "\u0642\u0637\u0629",
        "Donaudampfschifffahrtsgesellschaftskapitaenspatent" * 2,
    )
    assert visit.tab.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    box = visit.tab.locator("#results-card").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]


def test_the_policy_keeps_the_page_from_calling_anyone_else(visit: Any) -> None:
    """A script of the page that asks another host is stopped by the browser."""
    call = "() => fetch('http://127.0.0.2:9/').then(() => '', (error) => error.name)"
    assert visit.tab.evaluate(call) == "TypeError"
    assert any("Content Security Policy" in line for line in visit.said)
    visit.said.clear()
    visit.hosts.discard("127.0.0.2:9")


def test_every_control_has_a_name(visit: Any) -> None:
    """Whatever takes the focus has a label for screen readers."""
    visit.search("pizza")
    unnamed = """() => [...document.querySelectorAll("button, input, textarea, a, [tabindex='0']")]
        .filter((x) => x.checkVisibility() && !(x.ariaLabel || x.textContent.trim() || x.title
            || x.labels?.length || x.getAttribute("aria-labelledby")))
        .map((x) => x.outerHTML)"""
    assert visit.tab.evaluate(unnamed) == []


def run_snippet(visit: Any, language: str, result: str = "vectors") -> Any:
    """Copy the request, run it, and return what it names its result."""
    visit.tab.evaluate("""() => {
        window.copied = null;
        navigator.clipboard.writeText = async (text) => { window.copied = text; };
    }""")
    visit.tab.locator("#copy").click()
    visit.tab.wait_for_function("() => window.copied !== null")
    code = visit.tab.evaluate("window.copied")
    if language == "javascript":
        return visit.tab.evaluate(f"async () => {{ {code} return {result}; }}")
    command = ["bash", "-c", code]
    if language == "python":
        command = [sys.executable, "-c", f"{code}\nimport json; print(json.dumps({result}))"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    answer = json.loads(done.stdout)
    return answer if language == "python" else [row["embedding"] for row in answer["data"]]
