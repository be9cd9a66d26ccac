"""The shipped images, their names in 16 languages, and phrases that ask for them."""

import json
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "gallery"

LANGUAGES = {
    "en": "English",
    "de": "German",
    "fr": "French",
    "es": "Spanish",
    "pt": "Portuguese",
    "ru": "Russian",
    "el": "Greek",
    "ar": "Arabic",
    "he": "Hebrew",
    "hi": "Hindi",
    "th": "Thai",
    "ja": "Japanese",
    "ko": "Korean",
    "zh": "Chinese",
    "sw": "Swahili",
    "fi": "Finnish",
}


@dataclass(frozen=True)
class GalleryImage:
    """One image of the gallery."""

    file: str
    names: dict[str, str]

    @property
    def path(self) -> Path:
        """Where the PNG lies."""
        return FOLDER / self.file

    @property
    def english(self) -> str:
        """The English name."""
        return self.names["en"]


@dataclass(frozen=True)
class Query:
    """A text and the images that answer it."""

    text: str
    language: str
    expected: tuple[str, ...]


def gallery_images() -> list[GalleryImage]:
    """Return all images, in a fixed order."""
    entries = json.loads((FOLDER / "gallery.json").read_text(encoding="utf-8"))
    return [GalleryImage(entry["file"], entry["names"]) for entry in entries]


def phrases() -> list[Query]:
    """Return free phrases; their expected images are all in the gallery."""
    entries = json.loads((FOLDER / "phrases.json").read_text(encoding="utf-8"))
    return [Query(e["query"], e["language"], tuple(e["expected"])) for e in entries]
