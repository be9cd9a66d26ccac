"""The JSON shapes of requests and answers."""

import base64
import json

import numpy as np
import pytest

from deployments.config import ModelConfig
from deployments.model.errors import OptionError
from deployments.work import Embeddings, ImageItem, RequestError, TextItem, UnknownModelError, Usage
from serve_app import wire

MODEL = ModelConfig()


def parse(**fields):
    return wire.parse(json.dumps({"input": ["a"], **fields}).encode(), MODEL)


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
        ("data:image/png;base64,aGk=", ImageItem("data:image/png;base64,aGk=")),
        ("https://example.com/a.png", TextItem("https://example.com/a.png")),
    ],
)
def test_item_forms_of_the_clients_are_understood(sent, item):
    """Each form that a client sends becomes a text or a picture; a plain URL stays a text."""
    assert parse(input=[sent]).items == [item]
    if isinstance(sent, str):
        assert parse(input=sent).items == [item]


def test_modality_image_makes_plain_strings_pictures():
    """A URL as a plain string is a picture only when the request says so."""
    assert parse(input=["https://x/a.png"], modality="image").items == [
        ImageItem("https://x/a.png")
    ]


@pytest.mark.parametrize("sent", [1, None, [], {"text": 1}, {"image": 1}, {"pdf": "x"}, {}, True])
def test_other_items_are_refused_by_their_place(sent):
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
        ("encoding_format", "base64", "encoding", "base64"),
        ("encoding_type", "base64", "encoding", "base64"),
        ("embedding_type", ["base64"], "encoding", "base64"),
        ("normalized", False, "normalized", False),
        ("task", "", "task", None),
        ("task", "retrieval.passage", "task", None),
        ("late_chunking", False, "task", None),
        ("user", "somebody", "task", None),
    ],
)
def test_aliases_and_harmless_fields_are_taken(alias, value, field, meaning):
    """A field under any of its names means the same; unknown ones are ignored."""
    body = {"model": "jina-clip-v2", alias: value}
    if field != "items":
        body["input"] = ["a"]
    assert getattr(wire.parse(json.dumps(body).encode(), MODEL), field) == meaning


def test_every_name_of_the_model_is_accepted_and_no_other():
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
    ],
)
def test_options_outside_their_values_are_refused(fields):
    """A wrong type or value is an error, never guessed at."""
    with pytest.raises(OptionError):
        parse(**fields)


def test_floats_and_base64_carry_the_same_float32_numbers():
    """JSON floats read back to the very float32; base64 is little-endian float32."""
    rows = np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)
    answer = Embeddings(rows, Usage(5, 1))
    by_float = json.loads(wire.render(answer, "float", "m"))
    by_base64 = json.loads(wire.render(answer, "base64", "m"))
    floats = np.array([row["embedding"] for row in by_float["data"]], dtype=np.float32)
    raw = [np.frombuffer(base64.b64decode(r["embedding"]), "<f4") for r in by_base64["data"]]
    np.testing.assert_array_equal(floats, rows)
    np.testing.assert_array_equal(np.array(raw), rows)
    assert by_float["usage"] == {"total_tokens": 5, "prompt_tokens": 5, "images": 1}
    assert [row["index"] for row in by_float["data"]] == [0, 1, 2]
