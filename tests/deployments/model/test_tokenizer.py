"""Limits, truncation and prefixes of the tokenizer; the golden ids are in test_golden.py."""

import json
import shutil

import numpy as np
import pytest

from deployments.model.architecture import Architecture, TextArchitecture
from deployments.model.errors import CheckpointError, InputError, OptionError, TextTooLongError
from deployments.model.tokenizer import TextTokenizer
from deployments.model.weights.source import DEMO

TASK = "retrieval.query"
PREFIX = "Represent the query for retrieving evidence documents: "
START, END = 0, 2


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer(DEMO, Architecture.read(DEMO).text)


@pytest.fixture(scope="module")
def one_token_word(tokenizer):
    """A word that is one token wherever it stands, so that lengths can be counted."""
    word = "face "
    assert [len(ids) for ids in tokenizer.encode([word, word * 10])] == [3, 12]
    return word


def test_ids_are_int32_with_both_ends(tokenizer) -> None:
    """Every row starts with <s>, ends with </s>, and an empty text has nothing between."""
    rows = tokenizer.encode(["", "red apple"])
    assert rows[0].tolist() == [START, END]
    assert (rows[1][0], rows[1][-1]) == (START, END)
    assert all(ids.dtype == np.int32 for ids in rows)


def test_rows_are_not_padded(tokenizer) -> None:
    """Texts of one batch keep their own lengths and give the ids that they give alone."""
    texts = ["x", "red apple " * 30, ""]
    together = tokenizer.encode(texts)
    alone = [tokenizer.encode([text])[0] for text in texts]
    assert [ids.tolist() for ids in together] == [ids.tolist() for ids in alone]
    assert len({len(ids) for ids in together}) == 3


def test_the_longest_text_has_8192_tokens(tokenizer, one_token_word) -> None:
    """8190 words and both ends fit; one word more is refused with both numbers."""
    assert len(tokenizer.encode([one_token_word * 8190])[0]) == 8192
    with pytest.raises(TextTooLongError, match=r"text 1.* 8,193 tokens, the limit is 8,192"):
        tokenizer.encode(["short", one_token_word * 8191])


def test_max_length_counts_ends_and_prefix(tokenizer, one_token_word) -> None:
    """A limit holds for the whole row, so a prefix leaves less room for the text."""
    room = 40
    prefix_tokens = len(tokenizer.encode([PREFIX])[0]) - 2
    fits = one_token_word * (room - 2 - prefix_tokens)
    assert len(tokenizer.encode([fits], task=TASK, max_length=room)[0]) == room
    with pytest.raises(TextTooLongError, match="has 41 tokens, the limit is 40"):
        tokenizer.encode([fits + one_token_word], task=TASK, max_length=room)


@pytest.mark.parametrize("limit", [2, 3, 10, 11])
def test_truncation_keeps_the_start_and_ends_the_text(tokenizer, limit) -> None:
    """A cut row is the first n - 1 ids and </s>; a text within the limit is not touched."""
    whole = tokenizer.encode(["face " * 9])[0].tolist()
    cut = tokenizer.encode(["face " * 9], max_length=limit, truncate=True)[0].tolist()
    assert cut == (whole if limit == 11 else [*whole[: limit - 1], END])


@pytest.mark.parametrize("task", [None, TASK])
def test_truncation_at_the_start_keeps_the_prefix_and_the_end(tokenizer, task) -> None:
    """The same row by text and by token ids; a text within the limit is not touched."""
    text = "one two three four five six seven eight nine ten"
    ids = tokenizer.encode([text])[0].tolist()[1:-1]
    prefix = tokenizer.encode([PREFIX.rstrip() if task else ""])[0].tolist()[1:-1]
    limit = len(prefix) + 2 + 4
    expected = [START, *prefix, *ids[-4:], END]
    options = {"task": task, "max_length": limit, "truncate": "start"}
    assert tokenizer.encode([text], **options)[0].tolist() == expected
    assert tokenizer.wrap_each([ids], **options)[0].tolist() == expected
    at_the_end = tokenizer.encode([text], task, limit, truncate=True)[0].tolist()
    assert at_the_end != expected
    whole = tokenizer.encode([text], task)[0].tolist()
    assert tokenizer.encode([text], task, len(whole), truncate="start")[0].tolist() == whole


def test_the_query_task_prepends_its_prefix(tokenizer) -> None:
    """The ids are those of the prefix and the text written together."""
    by_task = tokenizer.encode(["red apple", ""], task=TASK)
    by_hand = tokenizer.encode([PREFIX + "red apple", PREFIX])
    assert [ids.tolist() for ids in by_task] == [ids.tolist() for ids in by_hand]
    assert by_task[0].tolist() != tokenizer.encode(["red apple"])[0].tolist()


@pytest.mark.parametrize("max_length", [-1, 0, 1, 8193])
def test_limits_out_of_range_are_refused(tokenizer, max_length) -> None:
    """Below two tokens there is no row, above 8192 there are no positions."""
    with pytest.raises(OptionError, match=f"max_length is {max_length}; .* from 2 to 8192"):
        tokenizer.encode(["x"], max_length=max_length)


@pytest.mark.parametrize("task", ["", "retrieval.passage", "RETRIEVAL.QUERY"])
def test_unknown_tasks_are_refused(tokenizer, task) -> None:
    """The model was trained with one prefix; every other name is an error that says so."""
    with pytest.raises(OptionError, match=r"choose 'retrieval\.query' or leave it out"):
        tokenizer.encode(["x"], task=task)


def test_huge_texts_are_refused_before_they_are_tokenised(tokenizer) -> None:
    """The character limit has its own message with both numbers."""
    text = "x" * (tokenizer.max_characters + 1)
    with pytest.raises(TextTooLongError, match=r"text 0.* 262,145 characters.* 262,144"):
        tokenizer.encode([text])


def test_each_text_can_be_judged_alone(tokenizer) -> None:
    """`encode_each` gives a text that is too long its error, and its neighbours their ids."""
    first, error, last = tokenizer.encode_each(["red", "face " * 50, "x"], max_length=8)
    assert isinstance(error, TextTooLongError)
    assert "52 tokens, the limit is 8" in str(error)
    alone = tokenizer.encode(["red", "x"])
    assert [first.tolist(), last.tolist()] == [ids.tolist() for ids in alone]


def test_a_missing_or_broken_file_is_refused(tmp_path) -> None:
    """The message names the file."""
    for content in (None, "{}", "not json"):
        if content is not None:
            (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"cannot read .*tokenizer\.json"):
            TextTokenizer(tmp_path, TextArchitecture())


def test_a_tokenizer_of_another_model_is_refused(tmp_path) -> None:
    """More tokens than the model has rows, or another <pad>, cannot be right."""
    with pytest.raises(CheckpointError, match="has 14500 tokens, the model 14000"):
        TextTokenizer(DEMO, TextArchitecture(vocab_size=14000))
    with pytest.raises(CheckpointError, match="its <pad> is not 5"):
        TextTokenizer(DEMO, TextArchitecture(pad_token_id=5))


def test_limits_written_into_the_file_do_not_count(tmp_path, tokenizer) -> None:
    """A file saved with truncation and padding on gives the same ids as one without."""
    shutil.copy(DEMO / "tokenizer.json", tmp_path)
    path = tmp_path / "tokenizer.json"
    facts = json.loads(path.read_text())
    facts["truncation"] = {
        "max_length": 5,
        "stride": 0,
        "strategy": "LongestFirst",
        "direction": "Right",
    }
    path.write_text(json.dumps(facts))
    other = TextTokenizer(tmp_path, Architecture.read(DEMO).text)
    text = "a photo of a cat sleeping on the moon"
    assert other.encode([text])[0].tolist() == tokenizer.encode([text])[0].tolist()


def test_token_ids_from_outside_become_what_their_text_would(tokenizer) -> None:
    """With or without specials, with the query prefix, at the limit; foreign ids are refused."""
    texts = ["a photo of a cat", "かわいい犬がいる", ""]
    for task in (None, "retrieval.query"):
        whole = tokenizer.encode(texts, task)
        plain = [ids.tolist() for ids in tokenizer.encode(texts)]
        for sent in (plain, [ids[1:-1] for ids in plain], [ids[1:] for ids in plain]):
            wrapped = tokenizer.wrap_each(sent, task)
            assert [ids.tolist() for ids in wrapped] == [ids.tolist() for ids in whole]
    long = tokenizer.encode(["face " * 50])[0].tolist()
    error, good = tokenizer.wrap_each([long, plain[0]], max_length=16)
    assert isinstance(error, TextTooLongError)
    assert good.tolist() == plain[0]
    (cut,) = tokenizer.wrap_each([long], max_length=16, truncate=True)
    expected = tokenizer.encode(["face " * 50], max_length=16, truncate=True)[0]
    assert cut.tolist() == expected.tolist()
    for foreign in ([0, tokenizer.vocab_size, 2], [0, -1, 2], [10**12]):
        (error,) = tokenizer.wrap_each([foreign])
        assert isinstance(error, InputError)
        assert str(tokenizer.vocab_size - 1) in str(error)
