"""The fields of a request: their names, what they may hold, and how they are read.

One table for the parser and for the OpenAPI document.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from deployments.messages import Lane
from deployments.model.architecture import QUERY_TASK
from serve_app.api import items, values
from serve_app.api.errors import FieldError
from serve_app.api.items import Modality
from serve_app.api.rendering import ENCODINGS, Encoding
from serve_app.api.values import DOCUMENT_TASKS, Served

T = TypeVar("T")

BOOLEAN = {"type": "boolean"}


@dataclass(frozen=True)
class Field(Generic[T]):
    """One field of a request.

    Attributes:
        names: under which it is sent; the first is the documented one.
        schema: of its values, as JSON schema.
        description: for the document.
        default: where it is absent or null.
        check: returns the meaning of a value, or raises FieldError with what it must be.
    """

    names: tuple[str, ...]
    schema: Mapping[str, Any]
    description: str
    default: T
    check: Callable[[Any, Served], T]

    def read(self, data: Mapping[str, object], served: Served) -> T:
        """Return the field's meaning in a request.

        Raises:
            FieldError: a value that it may not have.
        """
        name = next((name for name in self.names if data.get(name) is not None), None)
        return self.default if name is None else self.read_value(name, data[name], served)

    def read_value(self, name: str, value: object, served: Served) -> T:
        """Return the meaning of a value that was sent under `name`.

        Raises:
            FieldError: a value that it may not have.
        """
        try:
            return self.check(value, served)
        except FieldError as error:
            message = f"{name} is {values.shown(value)}; {error}"
            short = value if isinstance(value, (bool, int, float)) else values.shown(value)
            raise FieldError(message, name, error.kind, short) from None


INPUT: Field[object] = Field(
    ("input", "content", "texts"),
    {
        "anyOf": [
            *items.SCHEMAS,
            {"type": "array", "minItems": 1, "items": {"anyOf": items.SCHEMAS}},
            items.TOKENS_SCHEMA,
            {"type": "array", "minItems": 1, "items": items.TOKENS_SCHEMA},
        ]
    },
    "One text or picture, or a list of them in any order.",
    None,
    values.input,
)
MODEL: Field[str | None] = Field(
    ("model",), {"type": "string"}, "The served model, by any of its names.", None, values.model
)
TASK: Field[str | None] = Field(
    ("task", "task_type"),
    {"enum": [QUERY_TASK, *DOCUMENT_TASKS]},
    "`retrieval.query` puts the query prefix before texts; documents need none.",
    None,
    values.task,
)
DIMENSIONS: Field[int | None] = Field(
    ("dimensions", "output_dimensionality", "output_dimension"),
    {"type": "integer", "minimum": 1},
    "Width to cut the vectors to, before they are normalised.",
    None,
    values.dimensions,
)
NORMALIZED = Field(("normalized",), BOOLEAN, "Scale vectors to length 1.", True, values.flag)
TRUNCATE = Field(
    ("truncate", "truncation"), BOOLEAN, "Cut texts that are too long.", False, values.flag
)
ENCODING: Field[tuple[Encoding, ...]] = Field(
    ("embedding_type", "encoding_type", "encoding_format", "embedding_types"),
    {
        "anyOf": [
            {"enum": list(ENCODINGS)},
            {"type": "array", "minItems": 1, "items": {"enum": list(ENCODINGS)}},
        ]
    },
    "How vectors are written; several give an object keyed by name. base64: little-endian "
    "float32. ubinary: signs, 8 to a byte, most significant bit first. binary: that minus 128. "
    "int8: from -127 to 127, times `int8_scale` gives the vector.",
    ("float",),
    values.encodings,
)
MODALITY: Field[Modality] = Field(
    ("modality",),
    {"enum": ["text", "image"]},
    "What plain strings are; with `image` a plain URL is a picture.",
    "text",
    values.one_of("text", "image"),
)
ERRORS: Field[Literal["raise", "partial"]] = Field(
    ("errors",),
    {"enum": ["raise", "partial"]},
    "With `partial`, items that fail are null and listed in `errors`; others are answered.",
    "raise",
    values.one_of("raise", "partial"),
)
LANE: Field[Lane | None] = Field(
    ("priority",),
    {"enum": ["interactive", "bulk"]},
    "`bulk` work fills what interactive work leaves. The header X-Priority does the same.",
    None,
    values.one_of("interactive", "bulk"),
)
TIMEOUT_S: Field[float | None] = Field(
    ("timeout_s",),
    {"type": "number", "exclusiveMinimum": 0},
    "Seconds until the caller stops waiting. The header X-Timeout-S does the same.",
    None,
    values.timeout_s,
)
LATE_CHUNKING = Field(
    ("late_chunking",), {"const": False}, "Not for this model.", False, values.late_chunking
)
TOKEN_IDS = Field(
    ("input_type",),
    {"type": "string"},
    "`token_ids`: the lists of whole numbers in `input` are token ids of this model's own "
    "tokenizer.json. Other values are ignored.",
    False,
    lambda value, _served: bool(value == "token_ids"),
)

FIELDS: tuple[Field[Any], ...] = (
    INPUT,
    TOKEN_IDS,
    MODEL,
    TASK,
    DIMENSIONS,
    ENCODING,
    NORMALIZED,
    TRUNCATE,
    MODALITY,
    ERRORS,
    LANE,
    TIMEOUT_S,
    LATE_CHUNKING,
)
