"""Draws the demo's result: queries down, their best images across."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from serve_app.gallery import LANGUAGES, GalleryImage, Query

FONTS = Path(__file__).parent / "fonts"
FONT_OF = {"ar": "arabic.ttf", "he": "hebrew.ttf", "hi": "devanagari.ttf", "th": "thai.ttf"}
FONT_OF |= dict.fromkeys(("ja", "ko", "zh"), "cjk.otf")

CELL, GAP, LABEL, ROW, HEADER = 96, 14, 400, 132, 64
INK, FAINT, GOOD, PAPER = "#1b1f24", "#6b7280", "#15803d", "#ffffff"


def draw(
    queries: Sequence[Query],
    ranked: Sequence[Sequence[tuple[GalleryImage, float]]],
    title: str,
    path: Path,
) -> None:
    """Write a PNG with a row for each query: its text, then its best images with their scores.

    An image that answers the query is framed.
    """
    columns = max(len(row) for row in ranked)
    width = LABEL + columns * (CELL + GAP) + GAP
    sheet = Image.new("RGB", (width, HEADER + ROW * len(queries) + GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, 20), title, fill=INK, font=_font("en", 20))
    for number, (query, row) in enumerate(zip(queries, ranked, strict=True)):
        top = HEADER + number * ROW
        pen.line((GAP, top - 6, width - GAP, top - 6), fill="#e5e7eb")
        _label(pen, query, top)
        for column, (image, score) in enumerate(row):
            left = LABEL + column * (CELL + GAP)
            _image(sheet, pen, image, score, (left, top), image.file in query.expected)
    sheet.save(path, optimize=True)


def _label(pen: ImageDraw.ImageDraw, query: Query, top: int) -> None:
    font = _font(query.language, 22)
    while font.size > 12 and pen.textlength(query.text, font=font) > LABEL - 2 * GAP:
        font = _font(query.language, int(font.size) - 1)
    pen.text((GAP, top + 24), query.text, fill=INK, font=font)
    pen.text((GAP, top + 64), LANGUAGES[query.language], fill=FAINT, font=_font("en", 15))


def _image(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    image: GalleryImage,
    score: float,
    corner: tuple[int, int],
    expected: bool,
) -> None:
    left, top = corner
    with Image.open(image.path) as pixels:
        sheet.paste(pixels.convert("RGB").resize((CELL, CELL)), corner)
    if expected:
        pen.rectangle((left - 3, top - 3, left + CELL + 2, top + CELL + 2), outline=GOOD, width=3)
    pen.text((left, top + CELL + 4), f"{score:.3f}", fill=FAINT, font=_font("en", 14))


@cache
def _font(language: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONTS / FONT_OF.get(language, "latin.ttf")), size)
