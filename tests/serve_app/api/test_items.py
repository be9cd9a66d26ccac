"""The forms of texts and images that clients send, and what each becomes."""

import json

import pytest
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter

from deployments.errors import RequestError
from deployments.messages import ImageItem, TextItem, TokenItem
from serve_app.api.items import OneItem, read
from serve_app.api.request import parse as parse_body

FORMS = [
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
    ("DATA:Image/PNG;BASE64,aGk=", ImageItem("DATA:Image/PNG;BASE64,aGk=")),
    (" \n\ufeffdata:;base64,aGk=", ImageItem(" \n\ufeffdata:;base64,aGk=")),
    ("data:image/png; base64,aGk=", ImageItem("data:image/png; base64,aGk=")),
    ('"data:image/png;base64,aGk="', ImageItem('"data:image/png;base64,aGk="')),
    ("data: three of them, and base64, too", TextItem("data: three of them, and base64, too")),
    ("the data:image/png;base64, head", TextItem("the data:image/png;base64, head")),
    ({"text": "t", "image": ""}, TextItem("t")),
    ({"text": "t", "image_url": {"url": ""}, "bytes": ""}, TextItem("t")),
    ({"text": "", "image": "aGk="}, ImageItem("aGk=")),
    ({"image": "", "url": "aGk="}, ImageItem("aGk=")),
    ({"image": ""}, ImageItem("")),
    ({"blob": "aGk="}, ImageItem("aGk=")),
    ({"uri": "https://x/y.png"}, ImageItem("https://x/y.png")),
    ({"prompt_string": "t"}, TextItem("t")),
    ({"prompt_string": "<__media__>"}, TextItem("<__media__>")),
    ({"prompt_string": "<__media__>\n", "multimodal_data": ["aGk="]}, ImageItem("aGk=")),
    ({"prompt_string": "<__media_9f__>", "multimodal_data": ["aGk="]}, ImageItem("aGk=")),
    ({"prompt_string": "t", "multimodal_data": []}, TextItem("t")),
    ("https://example.com/a.png", TextItem("https://example.com/a.png")),
]
NO_FORMS = [
    *(1, None, [], {"text": 1}, {"image": 1}, {"pdf": "x"}, {}, True),
    {"prompt_string": "<__media__>", "multimodal_data": [1]},
]
BOTH = [
    {"text": "t", "image": "aGk="},
    {"prompt_string": "a red <__media__>", "multimodal_data": ["aGk="]},
]
SEVERAL = {"prompt_string": "<__media__><__media__>", "multimodal_data": ["aGk=", "aGk="]}


@pytest.fixture(scope="module")
def parse(served):
    """A function that parses a body of these fields and returns its items."""
    return lambda **fields: parse_body(json.dumps(fields).encode(), served).items


@pytest.mark.parametrize(("sent", "item"), FORMS)
def test_item_forms_of_the_clients_are_understood(parse, sent, item):
    """Each form that a client sends becomes a text or an image; a plain URL stays a text."""
    assert parse(input=[sent]) == [item]
    assert parse(input=sent) == [item]
    assert read(0, sent, "text", False) == item


def test_what_is_documented_of_an_item_is_what_is_read():
    """The schema in the OpenAPI document takes the forms, and not what is refused.

    Two things are not in it: keys that hold null are tolerated, and other keys are ignored.
    """
    documented = Draft202012Validator(TypeAdapter(OneItem).json_schema())
    for sent, _ in FORMS:
        assert documented.is_valid(sent) or None in sent.values(), sent
    for sent in NO_FORMS:
        assert not documented.is_valid(sent) or "pdf" in sent, sent


def test_modality_image_makes_plain_strings_images(parse):
    """A URL as a plain string is an image only when the request says so."""
    assert parse(input=["https://x/a.png"], modality="image") == [ImageItem("https://x/a.png")]


@pytest.mark.parametrize("sent", NO_FORMS)
def test_other_items_are_refused_by_their_place(parse, sent):
    """An item of no known form is an error that names it."""
    with pytest.raises(RequestError, match="item 1"):
        parse(input=["a", sent])


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ({"text": ["a", "b"]}, "an object with 'text': a list; send a string"),
        ({"type": "image", "source": {}}, "an object with 'type': a string, 'source': an object;"),
        ({"image": 5}, "an object with 'image': 5;"),
        ({}, "an object; send"),
    ],
)
def test_a_refused_object_is_told_what_it_has(parse, sent, shown):
    """Its keys and their types; their texts are not repeated."""
    with pytest.raises(RequestError) as refused:
        parse(input=[sent])
    assert shown in str(refused.value)
    with pytest.raises(RequestError) as refused:
        parse(input=[{f"{n}" * 1000: n for n in range(1000)}])
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("sent", BOTH)
def test_a_text_and_an_image_are_two_items(parse, sent):
    """One vector of both is not what this model makes."""
    with pytest.raises(RequestError, match="item 0 has a text and an image"):
        parse(input=[sent])


def test_several_images_in_one_item_are_several_items(parse):
    """It is said which field has how many, and what to do."""
    with pytest.raises(RequestError, match="item 1 has 2 images in multimodal_data; send an item"):
        parse(input=["a", SEVERAL])


def test_an_image_of_llama_cpps_without_its_list_is_no_text(parse):
    """A marker is never embedded in its place."""
    sent = {"prompt_string": "<__media__>", "multimodal_data": "aGk="}
    assert parse(input=[sent]) == [ImageItem("aGk=")]


def test_token_ids_are_taken_only_when_said_to_be_this_models(parse):
    """Ids of an unknown vocabulary are refused, and the message names the client's setting."""
    for sent in ([0, 5, 2], [[0, 5, 2], [7]], ["a", [1, 2]]):
        with pytest.raises(RequestError, match="check_embedding_ctx_length=False"):
            parse(input=sent)
        if "a" not in sent:
            with pytest.raises(RequestError, match="check_embedding_ctx_length=False"):
                parse(input=sent, input_type="query")
    assert parse(input=[0, 5, 2], input_type="token_ids") == [TokenItem((0, 5, 2))]
    both = parse(input=[[0, 5, 2], [7]], input_type="token_ids")
    assert both == [TokenItem((0, 5, 2)), TokenItem((7,))]
    for sent in ("text", [[1], "text"], [[1.5]], [[True]]):
        with pytest.raises(RequestError, match="item"):
            parse(input=sent, input_type="token_ids")


def test_an_empty_list_has_no_items_with_token_ids_either(parse):
    """It is not one text without tokens; the Router refuses a request without items."""
    assert parse(input=[], input_type="token_ids") == []
    assert parse(input=[]) == []
