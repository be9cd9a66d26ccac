"""Texts put together from their words have the ids that the library gives for whole texts."""

import itertools
import random
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.normalizers import NFKC
from tokenizers.pre_tokenizers import Metaspace

from deployments.model.weights.source import DEMO
from deployments.model.words import MAX_WORD_LENGTH, WordIds, separable
from serve_app.gallery import phrases

# Marks, joiners, spaces of every width, literal special tokens and what the normaliser removes.
ODD = (
    "\u0344\u0301\u0e33\u200d\u200b\u00a0\u3000\u2028\u0600\u0903\ufe0f\x00\x0b\x1c\x7f\x85\ufffd▁"
)
PARTS = (
    "<s>",
    "<pad>",
    "</s>",
    "<mask>",
    "\uff1cmask\uff1e",
    "👩‍👩‍👧",
    "🇩🇪",
    "각",
    "ก็ำ",
    "\r\n",
    " ",
    "  ",
    "\t",
    "ﬁ",
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO / "tokenizer.json"))


def whole(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def put_together(words: WordIds, texts: Sequence[str]) -> list[list[int]]:
    return [np.frombuffer(row, dtype=np.int32).tolist() for row in words.encode(texts)]


def odd_text(chance: random.Random) -> str:
    """Return words of letters of one block of Unicode, with odd pieces among them."""
    block = chance.choice(
        (0x41, 0xC0, 0x300, 0x3B0, 0x410, 0x5D0, 0x620, 0x900, 0xE00, 0x1100, 0x4E00)
    )
    pieces: list[str] = []
    for _ in range(chance.randint(1, 30)):
        letter = chr(block + chance.randrange(60))
        pieces.append(
            chance.choice((letter, letter, letter, " ", chance.choice(ODD), chance.choice(PARTS)))
        )
    return "".join(pieces)


@pytest.mark.parametrize("max_words", [30, 100_000])
def test_no_text_gets_other_ids_than_alone_and_whole(tokenizer: Tokenizer, max_words: int):
    """Real phrases and random Unicode, unknown at first and known later, in a full memory too."""
    chance = random.Random(8)
    texts = [phrase.text for phrase in phrases()] + [odd_text(chance) for _ in range(4000)]
    texts += [" ".join(chance.sample(texts, 3)) for _ in range(1000)]
    expected, words = whole(tokenizer, texts), WordIds(tokenizer, max_words)
    for _ in range(2):
        for start in range(0, len(texts), 64):
            batch = slice(start, start + 64)
            assert put_together(words, texts[batch]) == expected[batch]


def test_threads_may_share_the_memory_of_words(tokenizer: Tokenizer):
    """Several threads that fill, read and begin the memory again get the same ids."""
    chance = random.Random(9)
    names = [word for phrase in phrases() for word in phrase.text.split()]
    batches = [[" ".join(chance.choices(names, k=12)) for _ in range(8)] for _ in range(200)]
    words = WordIds(tokenizer, max_words=40)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(partial(put_together, words), batches))
    assert found == [whole(tokenizer, batch) for batch in batches]


def test_words_that_spaces_change_are_left_to_the_library(tokenizer: Tokenizer):
    """Two accents behind a space are normalised otherwise than at the start of a text."""
    word = "\u0344\u0301"
    text = f"red {word} apple"
    naive = [ids for part in text.split() for ids in whole(tokenizer, [part])[0]]
    assert whole(tokenizer, [text]) != [naive], "the control: here words are not independent"
    assert put_together(WordIds(tokenizer), [text]) == whole(tokenizer, [text])


def test_known_words_need_no_library(tokenizer: Tokenizer):
    """A text of words that were seen before is put together without tokenising anything."""
    words = WordIds(tokenizer)
    words.encode(["eine rote Katze", "ein grüner Apfel"])
    expected = whole(tokenizer, ["ein grüner\nApfel eine\trote Katze"])

    def fail(*_: object) -> list[bytes]:
        raise AssertionError("asked the library")

    words._whole = words._learn = fail
    assert put_together(words, ["ein grüner\nApfel eine\trote Katze"]) == expected
    with pytest.raises(AssertionError, match="asked the library"):
        words.encode(["eine blaue Katze"])


def test_what_is_remembered_is_bounded(tokenizer: Tokenizer):
    """Neither many words nor long ones stay, and sentences without spaces are not words."""
    words = WordIds(tokenizer, max_words=50)
    for number in range(500):
        words.encode([f"word{number} another{number}"])
        assert len(words._known) <= 50
    words = WordIds(tokenizer)
    words.encode(["a " + "b" * (MAX_WORD_LENGTH + 1), "月がきれいですね"])
    assert not words._known


def test_other_kinds_of_tokenizers_get_whole_texts(tokenizer: Tokenizer):
    """Where words are not independent, or not known to be, nothing is put together."""
    assert separable(tokenizer)
    plain = tokenizer.to_str()
    others = [Tokenizer.from_str(plain) for _ in range(4)]
    others[0].pre_tokenizer = Metaspace(prepend_scheme="first")
    others[1].normalizer = NFKC()
    others[2].add_tokens([AddedToken("<two words>")])
    others[3].add_tokens(["apple"])
    texts = ["red apple <two words> pie", "a  red\n apple"]
    for other in others:
        assert not separable(other)
        words = WordIds(other)
        assert put_together(words, texts) == whole(other, texts)
        assert not words._known


def test_marks_are_among_the_random_characters():
    """The random texts reach what makes words depend on their neighbours."""
    chance = random.Random(8)
    seen = "".join(odd_text(chance) for _ in range(4000))
    after_space = {unicodedata.category(b) for a, b in itertools.pairwise(seen) if a == " "}
    assert {"Mn", "Mc", "Cf", "Cc"} <= after_space
