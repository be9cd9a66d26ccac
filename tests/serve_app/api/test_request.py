"""The JSON shapes of requests and answers."""

import json

import pytest

from deployments.errors import RequestError, UnknownModelError
from deployments.messages import ImageItem, TextItem, TokenItem
from deployments.model.errors import OptionError
from serve_app.api import request as wire


@pytest.fixture(scope="module")
def read(served):
    """A function that parses a body of exactly these fields."""
    return lambda **fields: wire.parse(json.dumps(fields).encode(), served)


@pytest.fixture(scope="module")
def parse(read):
    """A function that parses a body of these fields and some input."""
    return lambda **fields: read(**{"input": ["a"], **fields})


@pytest.mark.parametrize(
    ("sent", "item"),
    [
        ("text", TextItem("text")),
        ("", TextItem("")),
        ({"text": "t"}, TextItem("t")),
        ({"image": "aGk="}, ImageItem("aGk=")),
        ({"url": "https://x/y.png"}, ImageItem("https://x/y.png")),
        ({"bytes": "aGk="}, ImageItem("aGk=")),
        ({"image_url": {"url": "https://x"}}, ImageItem("https://x")),
        ({"type": "image_url", "image_url": "https://x"}, ImageItem("https://x")),
        ({"type": "text", "text": "t"}, TextItem("t")),
        ({"image_base64": "aGk="}, ImageItem("aGk=")),
        ({"type": "image", "format": "base64", "value": "aGk="}, ImageItem("aGk=")),
        ({"type": "text", "value": "t"}, TextItem("t")),
        ({"inlineData": {"mimeType": "image/png", "data": "aGk="}}, ImageItem("aGk=")),
        ({"text": "t", "image": None}, TextItem("t")),
        ("data:image/png;base64,aGk=", ImageItem("data:image/png;base64,aGk=")),
        ("https://example.com/a.png", TextItem("https://example.com/a.png")),
    ],
)
def test_item_forms_of_the_clients_are_understood(parse, sent, item):
    """Each form that a client sends becomes a text or a picture; a plain URL stays a text."""
    assert parse(input=[sent]).items == [item]
    if isinstance(sent, str):
        assert parse(input=sent).items == [item]


def test_modality_image_makes_plain_strings_pictures(parse):
    """A URL as a plain string is a picture only when the request says so."""
    assert parse(input=["https://x/a.png"], modality="image").items == [
        ImageItem("https://x/a.png")
    ]


@pytest.mark.parametrize("sent", [1, None, [], {"text": 1}, {"image": 1}, {"pdf": "x"}, {}, True])
def test_other_items_are_refused_by_their_place(parse, sent):
    """An item of no known form is an error that names it."""
    with pytest.raises(RequestError, match="item 1"):
        parse(input=["a", sent])


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


def test_token_ids_are_taken_only_when_said_to_be_this_models(parse):
    """Ids of an unknown vocabulary are refused, and the message names the client's setting."""
    for sent in ([0, 5, 2], [[0, 5, 2], [7]], ["a", [1, 2]]):
        with pytest.raises(RequestError, match="check_embedding_ctx_length=False"):
            parse(input=sent)
        if "a" not in sent:
            with pytest.raises(RequestError, match="check_embedding_ctx_length=False"):
                parse(input=sent, input_type="query")
    assert parse(input=[0, 5, 2], input_type="token_ids").items == [TokenItem((0, 5, 2))]
    both = parse(input=[[0, 5, 2], [7]], input_type="token_ids").items
    assert both == [TokenItem((0, 5, 2)), TokenItem((7,))]
    for sent in ("text", [[1], "text"], [[1.5]], [[True]]):
        with pytest.raises(RequestError, match="item"):
            parse(input=sent, input_type="token_ids")


def test_depth_and_items_are_bounded(parse):
    """A body nested too deeply, or with too many items, is refused before its items are made."""
    nested: list = []
    for _ in range(40):
        nested = [nested]
    with pytest.raises(RequestError, match="16 levels"):
        parse(metadata=nested)
    with pytest.raises(RequestError, match="16 levels"):
        parse(task=nested)
    with pytest.raises(RequestError, match="8,192"):
        parse(input=["a"] * 8193)
    parse(metadata=[[[[]]]])


def test_what_a_client_sent_is_shortened_in_messages(parse):
    """A field that holds a whole document is not sent back as one."""
    for name in ("task", "model", "embedding_type", "modality", "priority"):
        with pytest.raises((OptionError, RequestError)) as error:
            parse(**{name: "secret " * 10_000})
        assert len(str(error.value)) < 300
