"""The forms in which clients send a text or a picture, and what each becomes."""

from collections.abc import Mapping
from typing import Any, Literal

from deployments.errors import RequestError
from deployments.messages import ImageItem, Item, TextItem, TokenItem

Modality = Literal["text", "image"]

IMAGE_KEYS = ("image", "url", "bytes", "image_url", "image_base64", "inlineData", "inline_data")
PART_KEYS = ("url", "data")  # of a picture that is an object itself: {"url": ...}, {"data": ...}
TOKEN_IDS = (
    "looks like token ids, which a client may have made with another model's vocabulary; send "
    "text (langchain-openai: check_embedding_ctx_length=False), or set input_type to 'token_ids' "
    "if they come from this model's own tokenizer"
)

# The OpenAPI schema of an item; `read` below takes exactly these forms.
IMAGE = {
    "type": "string",
    "description": "An http(s) or s3 URL, a data URI, or base64 (URL-safe and unpadded too).",
}
SCHEMAS: list[dict[str, Any]] = [
    {
        "type": "string",
        "description": "A text; a string that starts with data:image/ is a picture.",
    },
    {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}},
    *(
        {"type": "object", "required": [key], "properties": {key: IMAGE}}
        for key in ("image", "url", "bytes", "image_base64")
    ),
    {
        "type": "object",
        "required": ["image_url"],
        "properties": {
            "type": {"const": "image_url"},
            "image_url": {
                "anyOf": [
                    IMAGE,
                    {"type": "object", "required": ["url"], "properties": {"url": IMAGE}},
                ]
            },
        },
    },
    {
        "type": "object",
        "required": ["type", "value"],
        "properties": {"type": {"enum": ["text", "image"]}, "value": {"type": "string"}},
    },
]
TOKENS_SCHEMA = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0},
    "description": "Token ids of this model's tokenizer.json; only with input_type 'token_ids'.",
}


def read(value: object, modality: Modality, token_ids: bool) -> list[Item]:
    """Turn the field `input` into items.

    Args:
        value: one item or a list of items.
        modality: what a plain string is.
        token_ids: the caller says that whole numbers are token ids of this model.

    Raises:
        RequestError: an item of no known form; the message says which.
    """
    if token_ids:
        rows = value if isinstance(value, list) and not _is_ids(value) else [value]
        return [_tokens(index, ids) for index, ids in enumerate(rows)]
    values = value if isinstance(value, list) else [value]
    return [_item(index, item, modality) for index, item in enumerate(values)]


def _item(index: int, value: object, modality: Modality) -> Item:
    if isinstance(value, str):
        is_image = modality == "image" or value.startswith("data:image/")
        return ImageItem(value) if is_image else TextItem(value)
    if isinstance(value, dict):
        return _object(index, value)
    if _is_int(value) or (value and _is_ids(value)):
        raise RequestError(f"item {index} {TOKEN_IDS}")
    raise _refusal(index, value)


def _object(index: int, value: Mapping[str, object]) -> Item:
    image = next((value[key] for key in IMAGE_KEYS if value.get(key) is not None), None)
    text = value.get("text")
    if image is None and text is None:
        is_text = value.get("type") == "text"
        text, image = (value.get("value"), None) if is_text else (None, value.get("value"))
    if image is not None and text is not None:
        raise RequestError(
            f"item {index} has a text and a picture; send two items, each has a vector of its own"
        )
    if isinstance(text, str):
        return TextItem(text)
    if isinstance(image, Mapping):
        image = next((image[key] for key in PART_KEYS if key in image), None)
    if isinstance(image, str):
        return ImageItem(image)
    if "pdf" in value:
        raise RequestError(
            f"item {index} is a PDF, which is not read here; send its pages as images"
        )
    raise _refusal(index, value)


def _tokens(index: int, value: object) -> TokenItem:
    if not isinstance(value, list) or not _is_ids(value):
        raise RequestError(
            f"item {index} is {type_of(value)}; with input_type 'token_ids' send lists of whole "
            "numbers"
        )
    return TokenItem(tuple(value))


def _refusal(index: int, value: object) -> RequestError:
    return RequestError(
        f'item {index} is {type_of(value)}; send a string, {{"text": string}} or '
        f'{{"image": URL or base64}}'
    )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and all(_is_int(x) for x in value)


def type_of(value: object) -> str:
    """Name a JSON value's type, and numbers themselves, for an error message."""
    if isinstance(value, bool):
        return "true" if value else "false"
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null"}
    return names.get(type(value)) or f"{value!r:.40}"
