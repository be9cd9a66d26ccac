"""Token ids of texts put together from those of their words.

The tokenizer cuts a text at whitespace before anything else, so a word has the same ids in every
text, and texts share most of their words: looking their ids up is faster than finding them
(benchmarks/README.md).
"""

import json
import re
from array import array
from collections.abc import Iterable, Sequence
from typing import cast

from tokenizers import Tokenizer

MAX_WORDS = 131_072  # about 20 MB of natural ones
MAX_WORD_LENGTH = 64  # characters; longer ones seldom come again, nor do sentences without spaces
MARK = "▁"
# A word, normalised, that is neither cut further nor holds a special token, if it is printable.
SIMPLE = re.compile(rf"[^ <{MARK}]+")
# The tokenizers that treat what whitespace leaves as if each part stood alone.
PRE_TOKENIZER = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "WhitespaceSplit"},
        {"type": "Metaspace", "replacement": MARK, "prepend_scheme": "always", "split": True},
    ],
}


class WordIds:
    """Finds the token ids of texts, and remembers those of words; for any number of threads.

    Args:
        tokenizer: gets new words, texts that have a very long one and those of a single word; all
            texts, if it is of a kind whose texts cannot be put together.
        max_words: how many words to remember; for one more, it begins again.
    """

    def __init__(self, tokenizer: Tokenizer, max_words: int = MAX_WORDS) -> None:
        self._tokenizer = tokenizer
        self._model = tokenizer.model
        self._max_words = max_words
        self._separable = separable(tokenizer)
        self._known: dict[str, bytes] = {}

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        """Return the ids of each text, int32, without `<s>` and `</s>`."""
        cut = [words(text) if self._separable else [] for text in texts]
        rows = [joined(parts, self._known) for parts in cut]
        left = missing(rows)
        if left:
            known = self._learn(word for index in left for word in cut[index])
            for index in left:
                rows[index] = joined(cut[index], known)
            left = missing(rows)
            for index, row in zip(left, self._whole([texts[x] for x in left]), strict=True):
                rows[index] = row
        return cast("list[bytes]", rows)

    def _whole(self, texts: Sequence[str]) -> list[bytes]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [array("i", encoding.ids).tobytes() for encoding in encodings]

    def _learn(self, texts_words: Iterable[str]) -> dict[str, bytes]:
        """Find the ids of new words; returns those of all words that may be put together."""
        known, wanted = self._known, set(texts_words)
        new = [word for word in wanted if word not in known]
        if len(known) + len(new) > self._max_words:
            known = self._known = {}  # other threads may still read the old one
            new = list(wanted)
        others = []
        for word in new:
            normalized = self._normalized(word)
            if normalized is None:
                continue
            if SIMPLE.fullmatch(normalized) and normalized.isprintable():
                ids = [token.id for token in self._model.tokenize(MARK + normalized)]
                known[word] = array("i", ids).tobytes()
            else:
                others.append(word)
        known.update(zip(others, self._whole(others), strict=True))
        return known

    def _normalized(self, word: str) -> str | None:
        """Return what the normaliser makes of a word, None if spaces around it change that.

        It looks at characters as readers see them: an accent that follows a space is one with it.
        """
        if word.isascii() and word.isprintable():
            return word
        normalize = self._tokenizer.normalizer.normalize_str
        alone: str = normalize(word)
        return alone if normalize(f" {word} ") == f" {alone} " else None


def separable(tokenizer: Tokenizer) -> bool:
    """Tell whether a text's ids are those of its words, one after the other."""
    pre_tokenizer, normalizer = tokenizer.pre_tokenizer, tokenizer.normalizer
    if pre_tokenizer is None or normalizer is None:
        return False
    if json.loads(pre_tokenizer.__getstate__()) != PRE_TOKENIZER:
        return False
    if json.loads(normalizer.__getstate__())["type"] != "Precompiled":
        return False
    printable = "".join(map(chr, range(ord("!"), ord("~") + 1)))
    if normalizer.normalize_str(printable + " \n\t") != printable + "   ":
        return False
    # Special tokens are looked for before a text is cut.
    specials = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    return all("<" in x and not re.search(r"\s", x) for x in specials)


def words(text: str) -> list[str]:
    """Cut a text at spaces, tabs and line ends; nothing if it is not worth it."""
    parts = text.replace("\n", " ").replace("\t", " ").split(" ")
    return parts if len(parts) > 1 and max(map(len, parts)) <= MAX_WORD_LENGTH else []


def joined(parts: Sequence[str], known: dict[str, bytes]) -> bytes | None:
    """Return the ids of the words one after the other, None if those of one are not known."""
    try:
        return b"".join([known[word] for word in parts]) if parts else None
    except KeyError:
        return None


def missing(rows: Sequence[bytes | None]) -> list[int]:
    """Return the places of the rows that are not known."""
    return [index for index, row in enumerate(rows) if row is None]
