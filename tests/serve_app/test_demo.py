"""`jina-clip-serve demo` as a user runs it, and the picture that it draws."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from serve_app import contact_sheet, demo
from serve_app.gallery import LANGUAGES, Query, gallery_images


def test_the_demo_asks_in_at_least_twelve_languages_and_scripts():
    """About 60 pictures, 16 languages, and every expected picture that a name asks for is shown."""
    shown, queries = demo.choose()
    assert len(shown) == 60
    assert {query.language for query in queries} == set(LANGUAGES)
    files = {picture.file for picture in shown}
    assert all(files.intersection(query.expected) for query in queries)


def test_recall_counts_first_and_first_five():
    """One query found first, one third, one not at all."""
    shown = gallery_images()[:8]
    row = [(picture, 1.0 - 0.1 * place) for place, picture in enumerate(shown)]
    queries = [Query("q", "en", (shown[place].file,)) for place in (0, 2, 7)]
    recall = demo.recall(queries, [row] * 3)
    assert (recall.at_1, recall.at_5) == (1 / 3, 2 / 3)


def test_the_contact_sheet_shows_each_querys_pictures(tmp_path):
    """The best picture is drawn in the first column, framed when it is the expected one."""
    shown = gallery_images()[:2]
    queries = [Query("один", "ru", (shown[0].file,)), Query("二", "ja", (shown[0].file,))]
    ranked = [[(shown[0], 0.9), (shown[1], 0.1)], [(shown[1], 0.9), (shown[0], 0.1)]]
    path = tmp_path / "sheet.png"
    contact_sheet.draw(queries, ranked, "title", path)
    sheet = np.asarray(Image.open(path).convert("RGB"))
    frame = sheet[contact_sheet.HEADER - 2, contact_sheet.LABEL + 10]
    assert tuple(frame) == (0x15, 0x80, 0x3D)
    second = contact_sheet.HEADER + contact_sheet.ROW
    assert tuple(sheet[second - 2, contact_sheet.LABEL + 10]) == (255, 255, 255)
    cell = sheet[contact_sheet.HEADER :, contact_sheet.LABEL :][: contact_sheet.CELL]
    with Image.open(shown[0].path) as image:
        expected = np.asarray(image.convert("RGB").resize((contact_sheet.CELL,) * 2))
    np.testing.assert_array_equal(cell[:, : contact_sheet.CELL], expected)


def test_the_command_prints_matches_draws_the_sheet_and_stops(tmp_path):
    """Exit 0, recall printed, a PNG written, no process left behind."""
    program = Path(sys.executable).parent / "jina-clip-serve"
    command = [program, "demo", "--output", tmp_path]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "16 languages: 91% first, 100% among the first five" in done.stdout
    assert "raylet" not in done.stdout + done.stderr
    with Image.open(tmp_path / "contact-sheet.png") as sheet:
        assert sheet.width > 800
