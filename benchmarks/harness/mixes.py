"""The bodies that the load generator sends, the same in every run."""

import base64
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.workloads import commented, jpegs
from deployments.plan.traffic import read_trace
from serve_app.gallery import gallery_images

WORDS = "red", "apple", "cat", "moon", "fast", "car", "blue", "house", "dog", "tree", "sun", "book"
QUERY_WORDS = 8
TEXT_WORDS = (4, 40)  # of a text where a mix does not say
MAX_TRACE_TOKENS = 8000
TOKENS_PER_WORD = 1.4  # of the shipped tokenizer on these words, measured
MIX = re.compile(r"(?:(\d+) texts?(?: of (\d+) words)?)?(?: \+ )?(?:(\d+) (image|photo)s?)?")
PHOTO_SIZE = 1280, 960
PROBE = {"text": "red apple"}  # a text whose row is known after the first answer


@dataclass(frozen=True)
class Call:
    """One request's body, the items in it, and about how many tokens its texts have.

    `is_probed` says that its first item is the probe.
    """

    mix: str
    body: bytes
    items: int
    tokens: int
    is_probed: bool


def calls(
    *mixes: str, lengths: Sequence[int] = (), encoding: str = "base64", probe: bool = False
) -> Iterator[Call]:
    """Yield requests without end, each of a mix drawn at random; a fixed seed repeats them.

    Args:
        mixes: `query` (one text of 8 words), `trace` (one text of the next of `lengths` words), or
            counts such as `32 texts`, `8 texts of 300 words`, `16 texts + 4 images`, `8 photos`:
            images are small PNGs, photos JPEGs of 1280x960.
        lengths: of the texts of a trace, in words.
        encoding: that is asked for.
        probe: put the probe in the place of the first of several texts.

    Raises:
        ValueError: a mix is not of that form.
    """
    chance, images = random.Random(0), {"image": distinct_images(), "photo": distinct_photos()}
    lengths_words = cycle(lengths or [QUERY_WORDS])
    while True:
        mix = chance.choice(mixes)
        if mix in ("query", "trace"):
            words = QUERY_WORDS if mix == "query" else next(lengths_words)
            items = [text(chance, words)]
        else:
            texts, each, shown, kind = counts(mix)
            items = [text(chance, each or chance.randint(*TEXT_WORDS)) for _ in range(texts)]
            items += [{"image": next(images[kind])} for _ in range(shown)]
        is_probed = probe and sum("text" in item for item in items) > 1
        if is_probed:
            items[0] = PROBE
        yield call(mix, items, encoding, is_probed)


def call(mix: str, items: Sequence[dict[str, str]], encoding: str, is_probed: bool) -> Call:
    """Return the request of items."""
    body: dict[str, Any] = {"model": "jina-clip-v2", "input": items, "embedding_type": encoding}
    words = sum(len(item.get("text", "").split()) for item in items)
    tokens = round(words * TOKENS_PER_WORD)
    return Call(mix, json.dumps(body).encode(), len(items), tokens, is_probed)


def text(chance: random.Random, words: int) -> dict[str, str]:
    """Return a text of random words."""
    return {"text": " ".join(chance.choices(WORDS, k=words))}


def distinct_images() -> Iterator[str]:
    """Yield the gallery's images again and again, no two alike, in base64.

    The same item twice in a request is computed once; decoders do not read what comes after an
    image.
    """
    files = [image.path.read_bytes() for image in gallery_images()]
    for number in count():
        yield base64.b64encode(files[number % len(files)] + number.to_bytes(8, "big")).decode()


def distinct_photos() -> Iterator[str]:
    """Yield JPEGs as a camera makes them again and again, no two alike, in base64.

    Each has a comment of its own behind its first marker; what follows the end of a JPEG would keep
    a GPU from decoding it.
    """
    files = jpegs(*PHOTO_SIZE, 8)
    for number in count():
        yield base64.b64encode(commented(files[number % len(files)], number)).decode()


def counts(mix: str) -> tuple[int, int, int, str]:
    """Return the texts of a mix, the words of each (0: any), the images, and their kind.

    Raises:
        ValueError: it is not of that form.
    """
    found = MIX.fullmatch(mix)
    if not mix or not found:
        raise ValueError(f"{mix!r} is not a mix such as '16 texts + 4 images'")
    *numbers, kind = found.groups()
    texts, words, images = (int(number or 0) for number in numbers)
    return texts, words, images, kind or "image"


def trace_lengths(path: Path) -> list[int]:
    """Return the texts of a trace in words, at most as long as the service takes."""
    tokens = np.minimum(read_trace(path).text.cost, MAX_TRACE_TOKENS)
    return [max(1, int(length / TOKENS_PER_WORD)) for length in tokens]


def poisson(seconds: float, per_s: float) -> Iterator[float]:
    """Yield times at random at a mean rate."""
    chance, due_s = random.Random(1), 0.0
    while (due_s := due_s + chance.expovariate(per_s)) < seconds:
        yield due_s


def trace_times(seconds: float, path: Path, speedup: float) -> Iterator[float]:
    """Yield the times of a trace, run faster."""
    times_s = read_trace(path).text.arrival_s / speedup
    yield from times_s[times_s < seconds].tolist()
