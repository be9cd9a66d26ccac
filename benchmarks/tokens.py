"""What does it save to put texts together from words that the Router remembers?

The library on whole texts and the product's tokenizer, in turns, on the same batches: natural text
while its words are new and when they are known, and text that cannot gain. Prose in eight languages
is that of the gettext catalogues of this machine, where it has any. Processor time of all threads;
the ids are compared.

    python -m benchmarks.tokens [--json]
"""

import os
import random
import string
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from gettext import GNUTranslations
from pathlib import Path
from pydoc_data.topics import topics
from statistics import mean, median
from typing import Any, TypeVar

from tokenizers import Tokenizer

from benchmarks.harness import report
from deployments.model.architecture import Architecture
from deployments.model.tokenizer import TextTokenizer
from deployments.model.weights.source import DEMO
from serve_app.gallery import gallery_images

T = TypeVar("T")

LANGUAGES = "de", "es", "fr", "it", "ko", "pl", "ru", "tr"
CATALOGUES = Path("/usr/share/locale")
SENTENCE_WORDS = 6  # shorter messages are labels
MOST_WORDS = 40_000  # of a language

BATCH = 64
WORDS = 22  # of a text
NUM_RANDOM = 4096
IDEOGRAPHS = [chr(point) for point in range(0x4E00, 0x4E00 + 3000)]


@dataclass(frozen=True)
class Result:
    """Processor time per text, in microseconds: the median of the batches of one run."""

    work: str
    texts: int
    tokens: float
    library_us: float
    us: float
    again_us: float


def corpora() -> dict[str, list[str]]:
    """Return texts by kind, the same in every run of one release of Python."""
    chance = random.Random(11)
    names = [name for image in gallery_images() for name in image.names.values()]
    chance.shuffle(names)
    letters = string.ascii_lowercase
    nonsense = ["".join(chance.choices(letters, k=7)) for _ in range(NUM_RANDOM * WORDS)]
    return {
        "English prose (Python's manual)": cut(" ".join(topics.values()).split()),
        **{f"prose of catalogues ({x})": cut(prose(x)) for x in LANGUAGES if prose(x)},
        "names in 16 languages": cut(" ".join(names).split()),
        "words of random letters": cut(nonsense),
        "ideographs without spaces": [
            "".join(chance.choices(IDEOGRAPHS, k=20)) for _ in range(NUM_RANDOM)
        ],
    }


@cache
def prose(language: str) -> tuple[str, ...]:
    """Return the words of translated sentences, in the order of the programs that say them."""
    words: list[str] = []
    for path in sorted((CATALOGUES / language / "LC_MESSAGES").glob("*.mo")):
        with suppress(ValueError, OSError, UnicodeError), path.open("rb") as file:
            said = GNUTranslations(file)._catalog.values()  # type: ignore[attr-defined]
            sentences = (str(text).split() for text in said)
            words += [x for each in sentences if len(each) >= SENTENCE_WORDS for x in each]
    return tuple(words[:MOST_WORDS])


def cut(words: Sequence[str]) -> list[str]:
    """Return texts of as many words each, whole batches of them."""
    texts = [" ".join(words[x : x + WORDS]) for x in range(0, len(words), WORDS)]
    return texts[: len(texts) // BATCH * BATCH]


def compare(work: str, texts: Sequence[str]) -> Result:
    """Tokenise every batch in both ways, in turns, then once more; raise if the ids differ."""
    library = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    ours = TextTokenizer(DEMO, Architecture.read(DEMO).text)
    rounds: list[list[tuple[float, float]]] = []
    lengths: list[int] = []
    for _ in range(2):
        rounds.append([])
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            expected, whole_us = timed(lambda: [x.ids for x in library.encode_batch_fast(batch)])  # noqa: B023
            rows, us = timed(lambda: ours.encode(batch))  # noqa: B023
            if [row.tolist() for row in rows] != expected:
                raise AssertionError(f"{work}: other ids")
            rounds[-1].append((whole_us, us))
            lengths += map(len, rows)
    first, again = rounds
    library_us, us = (median(column) for column in zip(*first, strict=True))
    again_us = median(us for _, us in again)
    return Result(work, len(texts), mean(lengths), library_us, us, again_us)


def timed(run: Callable[[], T]) -> tuple[T, float]:
    """Return what a run gives and its processor time per text in microseconds."""
    start_s = time.process_time()
    found = run()
    return found, (time.process_time() - start_s) / BATCH * 1e6


def show(results: Sequence[dict[str, Any]]) -> None:
    """Print a line for each kind of text."""
    print("microseconds of processor time a text")
    for result in results:
        x = Result(**result)
        print(
            f"{x.work:32s} {x.tokens:5.1f} tokens: library {x.library_us:6.1f}, words new to "
            f"known {x.us:6.1f} ({x.library_us / x.us:.1f}x), known {x.again_us:6.1f} "
            f"({x.library_us / x.again_us:.1f}x)"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    options = report.command(__doc__).parse_args(arguments)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads add time of their own
    report.write(options, [asdict(compare(*corpus)) for corpus in corpora().items()], show)


if __name__ == "__main__":
    main()
