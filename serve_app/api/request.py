"""The body of `POST /v1/embeddings`: one typed model, which the OpenAPI document is made from.

Requests of the Jina and of the OpenAI embedding API are taken, with the aliases that clients send
and their forms of texts and images (`items`); fields that are not known are ignored, as both do.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal, cast

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

from deployments.errors import RequestError, UnknownModelError
from deployments.messages import Item, Lane
from deployments.model.errors import InputError
from serve_app.api import dialects
from serve_app.api import items as item_forms
from serve_app.api.errors import FieldError
from serve_app.api.items import Modality, type_of
from serve_app.api.json_body import read_object
from serve_app.api.rendering import PACKED, Encoding
from serve_app.api.served import Served

TOKEN_IDS = "token_ids"  # of `input_type`
INPUTS = ("input", "content", "texts")  # an empty text is a text
MAX_SHOWN_CHARACTERS = 64
NOTHING: Mapping[str, str] = MappingProxyType({})

# Headers that mean the same as a field, which goes before them.
HEADERS = {"x-priority": "priority", "x-timeout-s": "timeout_s"}
# What a value must be, by pydantic's type of the error; other errors bring their own words.
MUST_BE = {
    "bool_type": "it must be true or false",
    "int_type": "it must be a whole number",
    "literal_error": "choose {expected}",
}


def _served(info: ValidationInfo) -> Served:
    """Return what `parse` reads the request against."""
    return cast(Served, info.context)


def _model(value: object, info: ValidationInfo) -> str:
    names = _served(info).names
    if value not in names:
        raise UnknownModelError(f"model {shown(value)} is not served here; this is {names[0]!r}")
    return names[0]


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


class EmbeddingRequest(BaseModel):
    """Texts and images to embed, and how."""

    # Fields are read in this order, and the first fault is the one that is told.
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    model: Annotated[str | None, PlainValidator(_model, json_schema_input_type=str)] = None
    """The served model, by any of its names."""
    late_chunking: Annotated[
        bool, PlainValidator(_late_chunking, json_schema_input_type=Literal[False])
    ] = False
    """Not for this model."""
    modality: Modality = "text"
    """What plain strings are; with `image` a plain URL is an image."""
    input_type: Annotated[
        object, BeforeValidator(dialects.input_type), WithJsonSchema({"type": "string"})
    ] = None
    """`token_ids`: the lists of whole numbers in `input` are token ids of this model's own
    tokenizer.json. `query` and `search_query` are the task `retrieval.query`; `passage`,
    `document` and `search_document` are `retrieval.passage`. Other values are ignored."""
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
    items: Annotated[
        list[Item],
        PlainValidator(_items, json_schema_input_type=item_forms.Input),
        Field(validation_alias=AliasChoices("input", "content", "texts")),
    ]
    """One text or image, or a list of them in any order."""
    task: Annotated[
        Literal["retrieval.query", "retrieval.passage", ""] | None,
        Field(validation_alias=AliasChoices("task", "task_type")),
        AfterValidator(dialects.task),
        Field(validate_default=True),
    ] = None
    """`retrieval.query` puts the query prefix before texts; documents need none."""
    normalized: StrictBool = True
    """Scale vectors to length 1."""
    truncate: Annotated[
        StrictBool | Literal["start"],
        BeforeValidator(
            dialects.truncate,
            json_schema_input_type=bool | Literal["NONE", "END", "START", "start"],
        ),
        Field(validation_alias=AliasChoices("truncate", "truncation")),
    ] = False
    """Cut texts that are too long, at their end. `NONE` and `END` are false and true; `START`
    cuts at the start."""
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


ALIASES = tuple(
    tuple(str(name) for name in info.validation_alias.choices)
    for info in EmbeddingRequest.model_fields.values()
    if isinstance(info.validation_alias, AliasChoices)
)


def parse(body: bytes, served: Served, headers: Mapping[str, str] = NOTHING) -> EmbeddingRequest:
    """Read the body of `POST /v1/embeddings`, and the headers that stand for fields of it.

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
    _refuse_conflicts(sent)
    from_headers = {
        field: header
        for header, field in HEADERS.items()
        if field not in sent and header in headers
    }
    sent |= {field: headers[header] for field, header in from_headers.items()}
    try:
        return EmbeddingRequest.model_validate(sent, context=served)
    except ValidationError as error:
        raise _refusal(error, from_headers) from None


def _refuse_conflicts(sent: Mapping[str, object]) -> None:
    """Refuse a field that was sent under two of its names and differs.

    Raises:
        FieldError: names both; one of them would be passed over in silence.
    """
    for names in ALIASES:
        first, *others = [name for name in names if name in sent] or [""]
        for other in others:
            if dialects.listed(dialects.truncate(sent[other])) != dialects.listed(
                dialects.truncate(sent[first])
            ):
                raise FieldError(
                    f"{first} is {shown(sent[first])} and {other} is {shown(sent[other])}; they "
                    "mean the same field, so send one of them",
                    other,
                    "conflict",
                    shown(sent[other]),
                )


def shown(value: object) -> str:
    """Show a value in an error message, shortened."""
    if not isinstance(value, str):
        return type_of(value)
    cut = value[:MAX_SHOWN_CHARACTERS]
    return repr(cut) if cut == value else f"{cut!r}..."


def _refusal(error: ValidationError, from_headers: Mapping[str, str]) -> InputError:
    """Return the first fault that was found, under the name that the client used."""
    first = error.errors(include_url=False)[0]
    kind, value, facts = first["type"], first["input"], first.get("ctx", {})
    if isinstance(own := facts.get("error"), InputError):
        return own
    if kind == "missing":
        return RequestError("the field 'input' is missing; send a list of texts and images")
    name = str(first["loc"][0])
    name = from_headers.get(name, name)
    hint = MUST_BE.get(kind, first["msg"]).format(**facts)
    short = value if isinstance(value, (bool, int, float)) else shown(value)
    kind = "enum" if kind == "literal_error" else kind
    return FieldError(f"{name} is {shown(value)}; {hint}", name, kind, short)
