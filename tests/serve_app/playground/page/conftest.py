"""A tab of a real browser on the playground, and what a user does in it."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP = {"width": 1280, "height": 900}

TRANSFER = """(files) => {
    const transfer = new DataTransfer();
    for (const [name, bytes] of Object.entries(files)) {
        transfer.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
    }
    return transfer;
}"""


@dataclass
class Visit:
    """The page, freshly opened, with what went wrong and who was called."""

    tab: Any
    said: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def search(self, *texts: str) -> None:
        """Type texts and wait until each has a ranking."""
        self.tab.fill("#texts", "\n".join(texts))
        self.tab.wait_for_function(
            """(wanted) => wanted ===
                [...document.querySelectorAll(".ranking")].map((x) => x.ariaLabel).join("|")""",
            arg="|".join(texts),
        )

    def firsts(self) -> dict[str, str]:
        """The first image of each ranking, by heading."""
        script = """() => [...document.querySelectorAll(".ranking")].map((ranking) =>
            [ranking.ariaLabel, ranking.querySelector(".image img").src])"""
        return {label: src.rpartition("/")[2] for label, src in self.tab.evaluate(script)}

    def order(self) -> list[str]:
        """The names in the first ranking, best first."""
        names: list[str] = self.tab.locator(".ranking").first.locator(".name").all_text_contents()
        return names

    def everything(self) -> list[str]:
        """All names of the first ranking; leaves it as it was."""
        self.tab.locator("#more-0").click()
        names = self.order()
        self.tab.locator("#more-0").click()
        return names

    def slide(self, width: int) -> None:
        """Move the slider to a width."""
        marks = self.tab.locator("#width-marks span").all_text_contents()
        self.tab.fill("#width", str(marks.index(str(width))))

    def drop(self, selector: str, files: dict[str, bytes]) -> None:
        """Drop files on an element, as the browser reports it."""
        handle = self.transfer(files)
        for event in ("dragenter", "dragover", "drop"):
            self.tab.dispatch_event(selector, event, {"dataTransfer": handle})

    def paste(self, files: dict[str, bytes]) -> None:
        """Paste files, as the browser reports it."""
        event = 'new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true })'
        script = f"(transfer) => {{ document.dispatchEvent({event}); }}"
        self.tab.evaluate(script, self.transfer(files))

    def transfer(self, files: dict[str, bytes]) -> Any:
        """Put files into an object of the browser, as a drop or a paste carries them."""
        data = {name: list(content) for name, content in files.items()}
        return self.tab.evaluate_handle(TRANSFER, data)


@pytest.fixture(scope="module")
def tab(url: str) -> Iterator[Any]:
    """One tab of a real browser, so that the gallery is embedded once a module.

    No longer: while it is open an event loop runs in this thread, and tests that are coroutines
    cannot.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser.new_page()
        browser.close()


@pytest.fixture
def visit(tab: Any, url: str, stand_in: Any) -> Iterator[Visit]:
    """The page, opened anew; by the end it must not have logged anything or called anyone else."""
    opened = Visit(tab)
    here = httpx.URL(url).netloc.decode()
    listeners = {
        "console": lambda message: opened.said.append(message.text),
        "pageerror": lambda error: opened.said.append(str(error)),
        "request": lambda request: opened.hosts.add(httpx.URL(request.url).netloc.decode()),
    }
    for name, listener in listeners.items():
        tab.on(name, listener)
    stand_in.key = ""
    tab.set_viewport_size(DESKTOP)
    tab.goto(url)
    tab.wait_for_selector("#results img")
    tab.wait_for_selector("#progress", state="hidden")
    stand_in.bodies.clear()
    yield opened
    for name, listener in listeners.items():
        tab.remove_listener(name, listener)
    assert opened.said == []
    assert opened.hosts - {""} == {here}  # "" is of a blob: address
