"""The bodies of requests: one typed model each, which the OpenAPI document is made from.

Requests of the Jina and of the OpenAI embedding API are taken, with the aliases that clients send
and their forms of texts and images (`items`); fields that are not known are ignored, as both do.
"""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Annotated, Literal, TypeVar, cast

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    StrictInt,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from deployments.errors import UnknownModelError
from deployments.messages import Item, Lane
from serve_app.api import dialects
from serve_app.api import items as item_forms
from serve_app.api.items import Modality
from serve_app.api.json_body import read_object
from serve_app.api.refusals import refusal, refuse_conflicts, shown
from serve_app.api.rendering import PACKED, Encoding
from serve_app.api.served import Served

TOKEN_IDS = "token_ids"  # of `input_type`
INPUTS = ("input", "content", "texts", "data")  # an empty text is a text
NOTHING: Mapping[str, str] = MappingProxyType({})

# Headers that mean the same as a field, which goes before them.
HEADERS = {"x-priority": "priority", "x-timeout-s": "timeout_s"}


def _served(info: ValidationInfo) -> Served:
    """Return what `parse` reads the request against."""
    return cast(Served, info.context)


def _model(value: object, info: ValidationInfo) -> str:
    names = _served(info).names
    if value not in names:
        raise UnknownModelError(f"model {shown(value)} is not served here; this is {names[0]!r}")
    return names[0]


def _truncate(value: object, info: ValidationInfo) -> bool | Literal["start"]:
    """Read words for where a text is cut, or vLLM's number of tokens."""
    cut = item_forms.whole(dialects.truncate(value))
    if cut is True or cut is False or cut == "start":
        return cut
    if not isinstance(cut, int):
        raise PydanticCustomError("enum", "choose true, false, NONE, END or START")
    limit = _served(info).architecture.text.max_tokens
    if cut not in (-1, limit):
        raise PydanticCustomError(
            "enum",
            "texts are cut at the model's limit alone; send {limit}, or -1",
            {"limit": limit},
        )
    return True


def _images(value: object) -> None:
    if value:
        raise PydanticCustomError("enum", "send each as an item of input, with the key image")


def _late_chunking(value: object) -> bool:
    if value is not False:
        raise PydanticCustomError("enum", "this model does not have it; leave it out")
    return False


def _items(value: object, info: ValidationInfo) -> list[object]:
    """Read the items; more than the Router takes stay as they are, it refuses their number."""
    modality, token_ids = info.data.get("modality", "text"), info.data["input_type"] == TOKEN_IDS
    values = item_forms.split(value, token_ids)
    if len(values) > _served(info).config.router.max_items_per_request:
        return values
    return [item_forms.read(index, item, modality, token_ids) for index, item in enumerate(values)]


def _dimensions(value: int, info: ValidationInfo) -> int:
    width = _served(info).architecture.width
    if value < 1:
        raise PydanticCustomError(
            "greater_than_equal", "it must be from 1 to {width}", {"width": width}
        )
    if value > width:
        raise PydanticCustomError(
            "less_than_equal",
            "it must be from 1 to {width}, the width of this model",
            {"width": width},
        )
    if value % 8 and not {*PACKED}.isdisjoint(info.data.get("encodings", ())):
        raise PydanticCustomError(
            "multiple_of",
            "binary and ubinary put 8 dimensions into a byte, so it must be a multiple of 8",
        )
    return value


EncodingList = Annotated[list[Encoding], Field(min_length=1)]


class ItemsRequest(BaseModel):
    """Texts and images, and what every request may say of them."""

    # Fields are read in this order, and the first fault is the one that is told.
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    model: Annotated[str | None, PlainValidator(_model, json_schema_input_type=str)] = None
    """The served model, by any of its names."""
    modality: Modality = "text"
    """What plain strings are; with `image` a plain URL is an image."""
    input_type: Annotated[
        object, BeforeValidator(dialects.input_type), WithJsonSchema({"type": "string"})
    ] = None
    """`token_ids`: the lists of whole numbers in `input` are token ids of this model's own
    tokenizer.json. `query` and `search_query` are the task `retrieval.query`; `passage`,
    `document` and `search_document` are `retrieval.passage`. Other values are ignored."""
    images: Annotated[None, PlainValidator(_images, json_schema_input_type=None)] = None
    """Not a field here: an image is an item of `input`."""
    items: Annotated[
        list[Item],
        PlainValidator(_items, json_schema_input_type=item_forms.Input),
        Field(validation_alias=AliasChoices(*INPUTS)),
    ]
    """One text or image, or a list of them in any order."""
    truncate: Annotated[
        bool | Literal["start"],
        PlainValidator(
            _truncate,
            json_schema_input_type=bool | Literal["NONE", "END", "START", "start"] | int,
        ),
        Field(validation_alias=AliasChoices("truncate", "truncation", "truncate_prompt_tokens")),
    ] = False
    """Cut texts that are too long, at their end. `NONE` and `END` are false and true; `START`
    cuts at the start. A number is of tokens: the model's own limit, or -1 for that."""
    errors: Literal["raise", "partial"] = "raise"
    """With `partial`, items that fail are null and listed in `errors`; others are answered."""
    lane: Annotated[Lane | None, Field(validation_alias="priority")] = None
    """`bulk` work fills what interactive work leaves. The header X-Priority does the same."""
    timeout_s: Annotated[
        float | None,
        PlainValidator(dialects.seconds, json_schema_input_type=Annotated[float, Field(gt=0)]),
    ] = None
    """Seconds until the caller stops waiting. The header X-Timeout-S does the same."""

    @property
    def partial(self) -> bool:
        """Whether single items may fail."""
        return self.errors == "partial"


class EmbeddingRequest(ItemsRequest):
    """Texts and images to embed, and how."""

    late_chunking: Annotated[
        bool, PlainValidator(_late_chunking, json_schema_input_type=Literal[False])
    ] = False
    """Not for this model."""
    encodings: Annotated[
        tuple[Encoding, ...],
        BeforeValidator(dialects.listed, json_schema_input_type=Encoding | EncodingList),
        AfterValidator(lambda names: tuple(dict.fromkeys(names))),
        Field(
            validation_alias=AliasChoices(
                "embedding_type", "encoding_type", "encoding_format", "embedding_types"
            )
        ),
    ] = ("float",)
    """How vectors are written; several give an object keyed by name. base64: little-endian
    float32. ubinary: signs, 8 to a byte, most significant bit first. binary: that minus 128.
    int8: from -127 to 127, times `int8_scale` gives the vector."""
    dimensions: Annotated[
        StrictInt | None,
        BeforeValidator(item_forms.whole),
        Field(
            validation_alias=AliasChoices("dimensions", "output_dimensionality", "output_dimension")
        ),
        AfterValidator(_dimensions),
    ] = None
    """Width to cut the vectors to, before they are normalised."""
    task: Annotated[
        Literal["retrieval.query", "retrieval.passage", ""] | None,
        Field(validation_alias=AliasChoices("task", "task_type")),
        AfterValidator(dialects.task),
        Field(validate_default=True),
    ] = None
    """`retrieval.query` puts the query prefix before texts; documents need none."""
    normalized: StrictBool = True
    """Scale vectors to length 1."""


class ClassificationRequest(ItemsRequest):
    """Texts and images, and labels of which each gets a score for each item."""

    labels: Annotated[
        object,
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "array", "items": {"type": "string"}, "minItems": 2},
                    {
                        "type": "object",
                        "additionalProperties": {
                            "type": "array",
                            "items": {"type": "string"},
                            "minItems": 2,
                        },
                    },
                ]
            }
        ),
    ]
    """Texts to choose from, or lists of them by the names of groups: each group is a choice of
    its own."""
    logit_scale: StrictBool = False
    """Score by the model's trained temperature; without it, as the hosted API does, by 1."""


R = TypeVar("R", bound=ItemsRequest)


@cache
def aliases(shape: type[ItemsRequest]) -> tuple[tuple[str, ...], ...]:
    """Return the names of each field that has several."""
    return tuple(
        tuple(str(name) for name in info.validation_alias.choices)
        for info in shape.model_fields.values()
        if isinstance(info.validation_alias, AliasChoices)
    )


def parse(body: bytes, served: Served, headers: Mapping[str, str] = NOTHING) -> EmbeddingRequest:
    """Read the body of `POST /v1/embeddings`; see `parse_as`."""
    return parse_as(EmbeddingRequest, body, served, headers)


def parse_as(
    shape: type[R], body: bytes, served: Served, headers: Mapping[str, str] = NOTHING
) -> R:
    """Read the body of a request, and the headers that stand for fields of it.

    Raises:
        RequestError: not JSON, or not of the documented shape.
        OptionError: an option outside its values.
        UnknownModelError: a model that is not served here.
    """
    data = read_object(body, served.config.router.max_json_depth)
    sent = {
        name: value
        for name, value in data.items()
        if value is not None and (value != "" or name in INPUTS)
    }
    refuse_conflicts(sent, aliases(shape))
    from_headers = {
        field: header
        for header, field in HEADERS.items()
        if field not in sent and headers.get(header)
    }
    sent |= {field: headers[header] for field, header in from_headers.items()}
    try:
        return shape.model_validate(sent, context=served)
    except ValidationError as error:
        raise refusal(error, from_headers) from None
