"""The forms in which clients send a text or an image, and what each becomes."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypeAliasType, TypedDict

from deployments.errors import RequestError
from deployments.messages import ImageItem, Item, TextItem, TokenItem

Modality = Literal["text", "image"]

IMAGE_KEYS = (
    "image",
    "url",
    "bytes",
    "image_url",
    "image_base64",
    "inlineData",
    "inline_data",
    "blob",  # clip-as-service
    "uri",
)
# Where the image of an item of llama.cpp's goes in its prompt.
MEDIA_MARKER = re.compile(r"\s*<__\w+__>\s*")
# A plain string that begins like one of these is an image, or refused: its letters are no text.
DATA_URI = re.compile(
    r"""[\s\ufeff"'<(]*(?:url\(\s*["']?)?data:\s*"""
    r"""(?:image/|[\w.+/-]*(?:;\s*[\w.+/=-]+)*;\s*base64\s*,)""",
    re.IGNORECASE,
)
PART_KEYS = ("url", "data")  # of an image that is an object itself: {"url": ...}, {"data": ...}
SHOWN_KEYS = 4  # of an object that is refused
TOKEN_IDS = (
    "looks like token ids, which a client may have made with another model's vocabulary; send "
    "text (langchain-openai: check_embedding_ctx_length=False), or set input_type to 'token_ids' "
    "if they come from this model's own tokenizer"
)

# What the OpenAPI document says of an item; `read` below takes these forms.
PlainString = Annotated[
    str, Field(description="A text; a string that begins like a data URI is an image.")
]
ImageSource = Annotated[
    str,
    Field(description="An http(s) or s3 URL, a data URI, or base64 (URL-safe and unpadded too)."),
]
TokenIds = TypeAliasType(
    "TokenIds",
    Annotated[
        list[Annotated[int, Field(ge=0)]],
        Field(
            description="Token ids of this model's tokenizer.json; only with input_type "
            "'token_ids'."
        ),
    ],
)


class ImageUrl(TypedDict):
    """An image's address, as in a part of an OpenAI chat message."""

    url: ImageSource


class InlineData(TypedDict):
    """An image, as in a part of a Gemini message."""

    data: ImageSource


@with_config(ConfigDict(json_schema_extra={"minProperties": 1}))
class ItemObject(TypedDict, total=False):
    """A text or an image under one of these keys; `value` goes with `type`."""

    text: str
    image: ImageSource
    url: ImageSource
    bytes: ImageSource
    image_base64: ImageSource
    image_url: ImageSource | ImageUrl
    inlineData: InlineData
    blob: ImageSource
    uri: ImageSource
    prompt_string: str
    multimodal_data: list[ImageSource]
    type: Literal["text", "image", "image_url"]
    value: str


OneItem = PlainString | ItemObject
Input = (
    OneItem
    | Annotated[list[OneItem], Field(min_length=1)]
    | TokenIds
    | Annotated[list[TokenIds], Field(min_length=1)]
)


def split(value: object, token_ids: bool) -> list[object]:
    """Return the single items of the field `input`, which may be one item or a list of them."""
    is_one = not isinstance(value, list) or (
        token_ids and bool(value) and _is_ids([whole(number) for number in value])
    )
    return [value] if is_one else value  # type: ignore[return-value]


def read(index: int, value: object, modality: Modality, token_ids: bool) -> Item:
    """Return what an item means.

    Args:
        index: its place in the request.
        value: as it was sent.
        modality: what a plain string is.
        token_ids: the caller says that lists of whole numbers are token ids of this model.

    Raises:
        RequestError: no known form; the message names the item and says which it has.
    """
    if token_ids:
        return _tokens(index, value)
    if isinstance(value, str):
        is_image = modality == "image" or DATA_URI.match(value) is not None
        return ImageItem(value) if is_image else TextItem(value)
    if isinstance(value, dict):
        return _object(index, value)
    if type(value) is int or (value and _is_ids(value)):
        raise RequestError(f"item {index} {TOKEN_IDS}")
    raise _refusal(index, value)


def _object(index: int, value: Mapping[str, object]) -> Item:
    text = value.get("text")
    if len(value) == 1 and isinstance(text, str):  # the usual object, in half the time
        return TextItem(text)
    if "prompt_string" in value:
        return _object(index, _of_llama_cpp(index, value))
    image = next((value[key] for key in IMAGE_KEYS if not _is_empty(value.get(key))), None)
    if image is not None and text == "":  # typed languages send empty fields
        text = None
    if image is None and text is None and "" in map(value.get, IMAGE_KEYS):
        return ImageItem("")  # a fault of this item alone
    if image is None and text is None:
        is_text = value.get("type") == "text"
        text, image = (value.get("value"), None) if is_text else (None, value.get("value"))
    if image is not None and text is not None:
        raise RequestError(
            f"item {index} has a text and an image; send two items, each has a vector of its own"
        )
    if isinstance(text, str):
        return TextItem(text)
    if isinstance(image, Mapping):
        image = next((image[key] for key in PART_KEYS if not _is_empty(image.get(key))), None)
    if isinstance(image, str):
        return ImageItem(image)
    if "pdf" in value:
        raise RequestError(
            f"item {index} is a PDF, which is not read here; send its pages as images"
        )
    raise _refusal(index, value)


def _of_llama_cpp(index: int, value: Mapping[str, object]) -> Mapping[str, object]:
    """Return llama.cpp's form of a text, or of an image with a marker in its place.

    Raises:
        RequestError: it has several images.
    """
    prompt, images = value["prompt_string"], value.get("multimodal_data")
    if _is_empty(images) or images == [] or not isinstance(prompt, str):
        return {"text": prompt}
    images = images if isinstance(images, list) else [images]
    if len(images) > 1:
        raise RequestError(
            f"item {index} has {len(images)} images in multimodal_data; send an item for each, "
            "every image has a vector of its own"
        )
    return {"text": MEDIA_MARKER.sub("", prompt), "image": images[0]}


def _is_empty(value: object) -> bool:
    """Return whether a field of an item is as good as absent."""
    if isinstance(value, Mapping):
        return all(_is_empty(nested) for nested in value.values())
    return value is None or value == ""


def _tokens(index: int, value: object) -> TokenItem:
    if isinstance(value, list):
        value = [whole(number) for number in value]
    if not isinstance(value, list) or not _is_ids(value):
        raise RequestError(
            f"item {index} is {type_of(value)}; with input_type 'token_ids' send lists of whole "
            "numbers"
        )
    return TokenItem(tuple(value))


def _refusal(index: int, value: object) -> RequestError:
    what = type_of(value)
    if isinstance(value, dict) and value:
        some = list(value.items())[:SHOWN_KEYS]
        what += f" with {', '.join(f'{name!r:.20}: {type_of(x)}' for name, x in some)}"
    return RequestError(
        f'item {index} is {what}; send a string, {{"text": string}} or {{"image": URL or base64}}'
    )


def _is_ids(value: object) -> bool:
    """Return whether a JSON value is a list of whole numbers; true and false are none."""
    return isinstance(value, list) and set(map(type, value)) <= {int}


def whole(value: object) -> object:
    """Return a number without a fraction as the integer that it is, as JSON Schema has it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def type_of(value: object) -> str:
    """Name a JSON value's type, and numbers themselves, for an error message."""
    if isinstance(value, bool):
        return "true" if value else "false"
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null"}
    return names.get(type(value)) or f"{value!r:.40}"
