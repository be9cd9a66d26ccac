"""The body of a request: its fields, their aliases, and what is refused."""

import json

import pytest

from deployments.errors import RequestError, UnknownModelError
from deployments.messages import TextItem
from deployments.model.errors import OptionError
from serve_app.api.errors import FieldError
from serve_app.api.request import parse as parse_body


@pytest.fixture(scope="module")
def read(served):
    """A function that parses a body of exactly these fields."""
    return lambda **fields: parse_body(json.dumps(fields).encode(), served)


@pytest.fixture(scope="module")
def parse(read):
    """A function that parses a body of these fields and some input."""
    return lambda **fields: read(**{"input": ["a"], **fields})


@pytest.mark.parametrize(
    ("alias", "value", "field", "meaning"),
    [
        ("content", ["b"], "items", [TextItem("b")]),
        ("texts", ["b"], "items", [TextItem("b")]),
        ("task_type", "retrieval.query", "task", "retrieval.query"),
        ("output_dimension", 64, "dimensions", 64),
        ("output_dimensionality", 64, "dimensions", 64),
        ("truncation", True, "truncate", True),
        ("encoding_format", "base64", "encodings", ("base64",)),
        ("encoding_type", "base64", "encodings", ("base64",)),
        ("embedding_types", ["int8", "float", "int8"], "encodings", ("int8", "float")),
        ("normalized", False, "normalized", False),
        ("task", "", "task", None),
        ("task", "retrieval.passage", "task", None),
        ("late_chunking", False, "task", None),
        ("user", "somebody", "task", None),
    ],
)
def test_aliases_and_harmless_fields_are_taken(read, alias, value, field, meaning):
    """A field under any of its names means the same; unknown ones are ignored."""
    body = {"model": "jina-clip-v2", alias: value}
    if field != "items":
        body["input"] = ["a"]
    assert getattr(read(**body), field) == meaning


def test_every_name_of_the_model_is_accepted_and_no_other(parse):
    """Served name, source and aliases; anything else is refused with the right name."""
    for name in ("jina-clip-demo", "demo", "jina-clip-v2", "jinaai/jina-clip-v2", None):
        parse(model=name)
    with pytest.raises(UnknownModelError, match="jina-clip-demo"):
        parse(model="text-embedding-3-small")


@pytest.mark.parametrize(
    "fields",
    [
        {"dimensions": 1.5},
        {"dimensions": True},
        {"normalized": 1},
        {"truncate": "no"},
        {"embedding_type": "hex"},
        {"task": "separation"},
        {"task": 3},
        {"modality": "audio"},
        {"late_chunking": True},
        {"embedding_type": []},
        {"embedding_type": [{}]},
        {"errors": "ignore"},
        {"priority": "urgent"},
        {"timeout_s": -1},
        {"dimensions": 60, "embedding_type": "binary"},
    ],
)
def test_options_outside_their_values_are_refused(parse, fields):
    """A wrong type or value is an error that begins with the field's name, never guessed at."""
    with pytest.raises(OptionError, match=f"^{next(iter(fields))} is"):
        parse(**fields)


def test_depth_is_bounded(parse):
    """A body nested too deeply is refused."""
    nested: list = []
    for _ in range(40):
        nested = [nested]
    with pytest.raises(RequestError, match="16 levels"):
        parse(metadata=nested)
    with pytest.raises(RequestError, match="16 levels"):
        parse(task=nested)
    parse(metadata=[[[[]]]])


@pytest.mark.parametrize("option", [{}, {"input_type": "token_ids"}])
def test_more_items_than_the_limit_are_not_made(read, option):
    """They stay as they were sent, and the Router refuses their number before it reads one."""
    sent = [[1]] if option else ["a"]
    assert read(input=sent * 8193, **option).items == sent * 8193
    assert read(input=sent * 8192, **option).items != sent * 8192


def test_null_is_as_good_as_absent(parse):
    """A null leaves the default, and the next alias its turn."""
    request = parse(dimensions=None, output_dimension=64, normalized=None, embedding_type=None)
    assert (request.dimensions, request.normalized, request.encodings) == (64, True, ("float",))


def test_headers_stand_for_the_fields_that_are_absent(served):
    """X-Priority and X-Timeout-S are read as their fields; a refusal names the header."""

    def read(fields, **headers):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return parse_body(json.dumps({"input": "a", **fields}).encode(), served, named)

    request = read({}, x_priority="bulk", x_timeout_s="2.5")
    assert (request.lane, request.timeout_s) == ("bulk", 2.5)
    request = read({"priority": "interactive", "timeout_s": 1}, x_priority="bulk", x_timeout_s="2")
    assert (request.lane, request.timeout_s) == ("interactive", 1.0)
    assert read({}, x_priority="", x_timeout_s="") == read({})
    for name, value in (("x_priority", "urgent"), ("x_timeout_s", "soon"), ("x_timeout_s", "-1")):
        with pytest.raises(FieldError, match=f"^{name.replace('_', '-')} is '{value}'") as error:
            read({}, **{name: value})
        assert error.value.field == name.replace("_", "-")


@pytest.mark.parametrize(
    ("fields", "kind", "shown"),
    [
        ({"dimensions": "64"}, "int_type", "'64'"),
        ({"dimensions": 0}, "greater_than_equal", 0),
        ({"output_dimension": 5000}, "less_than_equal", 5000),
        ({"dimensions": 60, "encoding_format": "ubinary"}, "multiple_of", 60),
        ({"truncation": "no"}, "enum", "'no'"),
        ({"truncate_prompt_tokens": 512}, "enum", 512),
        ({"task_type": "separation"}, "enum", "'separation'"),
        ({"embedding_types": ["float", "hex"]}, "enum", "'hex'"),
        ({"late_chunking": True}, "enum", True),
        ({"timeout_s": True}, "greater_than", True),
    ],
)
def test_a_refused_field_is_told_by_name_rule_and_value(parse, fields, kind, shown):
    """The name is the one that was sent; the rule is in the words of pydantic's error types."""
    with pytest.raises(FieldError) as error:
        parse(**fields)
    assert error.value.field == next(iter(fields))
    assert (error.value.kind, error.value.value) == (kind, shown)


@pytest.mark.parametrize("sent", ["no", {}, 1.5, []])
def test_what_truncate_may_be_is_told_whole(parse, sent):
    """The words of other APIs too, in place of the first of the forms that did not fit."""
    with pytest.raises(FieldError, match="true, false, NONE, END or START"):
        parse(truncate=sent)


@pytest.mark.parametrize("others", [{}, {"input": None, "texts": ["a"]}])
def test_images_in_a_field_of_their_own_are_not_passed_over(parse, others):
    """Cohere's requests have one; a field that is ignored would be rows that are missing."""
    with pytest.raises(FieldError, match="send each as an item of input"):
        parse(images=["data:image/png;base64,aGk="], **others)
    assert parse(images=[]).items == parse(images=None).items == [TextItem("a")]


def test_what_a_client_sent_is_shortened_in_messages(parse):
    """A field that holds a whole document is not sent back as one."""
    for name in ("task", "model", "embedding_type", "modality", "priority"):
        with pytest.raises((OptionError, RequestError)) as error:
            parse(**{name: "secret " * 10_000})
        assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("fields", "field", "meaning"),
    [
        ({"truncate": "NONE"}, "truncate", False),
        ({"truncate": "END"}, "truncate", True),
        ({"truncate": "Start"}, "truncate", "start"),
        ({"truncate_prompt_tokens": -1.0}, "truncate", True),
        ({"input_type": "query"}, "task", "retrieval.query"),
        ({"input_type": "search_query"}, "task", "retrieval.query"),
        ({"input_type": "QUERY", "task": "retrieval.query"}, "task", "retrieval.query"),
        ({"input_type": "passage"}, "task", None),
        ({"input_type": "search_document"}, "task", None),
        ({"input_type": "clustering"}, "task", None),
        (
            {"encoding_format": "", "user": "", "truncate": None, "task": ""},
            "encodings",
            ("float",),
        ),
        ({"dimensions": 64.0}, "dimensions", 64),
        ({"embedding_type": ["base64"], "encoding_format": "base64"}, "encodings", ("base64",)),
        ({"truncate": False, "truncation": "NONE"}, "truncate", False),
    ],
)
def test_other_apis_words_mean_what_they_mean_there(parse, fields, field, meaning):
    """NIM, Voyage, Cohere, typed languages with empty fields and with numbers like 64.0."""
    assert getattr(parse(**fields), field) == meaning


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"embedding_type": "float", "encoding_format": "base64"}, 2),
        ({"embedding_type": ["float", "int8"], "encoding_format": "float"}, 2),
        ({"dimensions": 64, "output_dimension": 32}, 2),
        ({"truncate": True, "truncation": "NONE"}, 2),
        ({"task": "retrieval.passage", "input_type": "query"}, 2),
    ],
)
def test_one_field_under_two_names_that_differ_is_refused(parse, fields, names):
    """The message names both; otherwise one of them would be passed over in silence."""
    with pytest.raises(FieldError) as refused:
        parse(**fields)
    assert sum(name in str(refused.value) for name in fields) == names


@pytest.mark.parametrize("value", [64.5, "64", True, 1e300])
def test_what_is_no_whole_number_stays_refused(parse, value):
    """A fraction, a text, a truth value, and a number without end."""
    with pytest.raises(FieldError):
        parse(dimensions=value)


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (rb"nice day \ud83d", "nice day \ufffd"),
        (rb"\ude00!", "\ufffd!"),
        (rb"\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        (rb"\\ud83d \ud83d", "\\ud83d \ufffd"),
        (rb"\\\ud83d", "\\\ufffd"),
        (b"a\xed\xa0\xbd", "a\ufffd"),
        (b"\xed\xa0\xbd\xed\xb8\x80", "\U0001f600"),
    ],
)
def test_half_a_surrogate_pair_is_replaced_and_the_others_are_read(served, sent, read):
    """In an escape or in bytes; a backslash in front of it is not an escape's beginning."""
    body = b'{"input": ["first", "%s", "\\ud83d\\ude00"]}' % sent
    texts = [item.text for item in parse_body(body, served).items]
    assert texts == ["first", read, "\U0001f600"]


def test_bytes_that_are_no_text_stay_refused(served):
    """Latin-1 is not guessed at."""
    with pytest.raises(RequestError, match="not in UTF-8"):
        parse_body(b'{"input": "caf\xe9 \\ud83d"}', served)


def test_a_byte_order_mark_does_no_harm(served):
    """Windows puts one before a file of JSON."""
    assert parse_body(b'\xef\xbb\xbf{"input": "a"}', served).items == [TextItem("a")]


@pytest.mark.parametrize("coding", ["latin-1", "utf-16"])
def test_a_body_in_another_coding_is_told_which_to_send(served, coding):
    """PowerShell 5 sends Latin-1 where it is told nothing."""
    with pytest.raises(RequestError, match="the body is not in UTF-8; send JSON in UTF-8"):
        parse_body('{"input": "é"}'.encode(coding), served)
