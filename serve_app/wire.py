"""The JSON shapes: what a request may look like, and what an answer looks like.

The only module that knows them. Requests of the Jina and of the OpenAI embedding API are taken,
with the aliases that clients send; fields that are not known are ignored, as both do.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import orjson

from deployments.config import ModelConfig
from deployments.model.architecture import QUERY_TASK
from deployments.model.errors import OptionError
from deployments.model.output import Rows
from deployments.queueing import Lane
from deployments.work import (
    Embeddings,
    ImageItem,
    Item,
    RequestError,
    TextItem,
    UnknownModelError,
)

Encoding = Literal["float", "base64"]
ENCODINGS = ("float", "base64")

ALIASES = {
    "input": ("input", "content", "texts"),
    "task": ("task", "task_type"),
    "dimensions": ("dimensions", "output_dimensionality", "output_dimension"),
    "truncate": ("truncate", "truncation"),
    "encoding": ("embedding_type", "encoding_type", "encoding_format", "embedding_types"),
    "normalized": ("normalized",),
    "model": ("model",),
}
IMAGE_KEYS = ("image", "url", "bytes", "image_url", "image_base64")
# Clients send it with every document; the model embeds documents without a prefix.
DOCUMENT_TASKS = ("", "retrieval.passage")


@dataclass(frozen=True)
class EmbeddingRequest:
    """A request in the product's own terms."""

    items: list[Item]
    task: str | None
    dimensions: int | None
    normalized: bool
    truncate: bool
    encoding: Encoding
    lane: Lane | None
    timeout_s: float | None


def parse(body: bytes, model: ModelConfig) -> EmbeddingRequest:
    """Read the body of `POST /v1/embeddings`.

    Raises:
        RequestError: not JSON, or not of the documented shape.
        OptionError: an option outside its values.
        UnknownModelError: a model that is not served here.
    """
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise RequestError(f"the body must be a JSON object, not {_json_type(data)}")
    names = (model.served_name, model.source, *model.aliases)
    asked = _field(data, "model")
    if asked is not None and asked not in names:
        raise UnknownModelError(f"model {asked!r} is not served here; this is {names[0]!r}")
    if data.get("late_chunking"):
        raise OptionError("late_chunking is true; this model does not have it")
    return EmbeddingRequest(
        items=_items(_field(data, "input"), data.get("modality")),
        task=_task(_field(data, "task")),
        dimensions=_dimensions(_field(data, "dimensions")),
        normalized=_flag("normalized", _field(data, "normalized"), True),
        truncate=_flag("truncate", _field(data, "truncate"), False),
        encoding=_encoding(_field(data, "encoding")),
        lane=lane(data.get("priority")),
        timeout_s=timeout_s(data.get("timeout_s")),
    )


def lane(value: object) -> Lane | None:
    """Read a priority, from the body or from a header.

    Raises:
        OptionError: not a lane.
    """
    if value is None or value == "interactive" or value == "bulk":
        return value
    raise OptionError(f"priority is {value!r}; choose 'interactive' or 'bulk'")


def timeout_s(value: object) -> float | None:
    """Read a time limit in seconds, a number in the body or a header's text.

    Raises:
        OptionError: not a positive number.
    """
    if value is None:
        return None
    try:
        seconds = float(value) if isinstance(value, (int, float, str)) else 0.0
    except ValueError:
        seconds = 0.0
    if isinstance(value, bool) or not 0 < seconds < math.inf:
        raise OptionError(f"timeout_s is {value!r}; it must be a positive number of seconds")
    return seconds


def render(answer: Embeddings, encoding: Encoding, model_name: str) -> bytes:
    """Return the JSON of an answer, rows in request order and numbered.

    Floats are the shortest decimals that give back the same float32; base64 is of little-endian
    float32.
    """
    rows = answer.embeddings
    encoded: Sequence[object] = _base64_rows(rows) if encoding == "base64" else list(rows)
    tokens = answer.usage.text_tokens
    return orjson.dumps(
        {
            "model": model_name,
            "object": "list",
            "usage": {
                "total_tokens": tokens,
                "prompt_tokens": tokens,
                "images": answer.usage.images,
            },
            "data": [
                {"object": "embedding", "index": index, "embedding": row}
                for index, row in enumerate(encoded)
            ],
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def models(model: ModelConfig, width: int, matryoshka: Sequence[int]) -> bytes:
    """Return the JSON of `GET /v1/models`."""
    entry = {
        "id": model.served_name,
        "object": "model",
        "created": 0,
        "owned_by": "jina-clip-serve",
        "source": model.source,
        "aliases": list(model.aliases),
        "dimensions": width,
        "matryoshka_dimensions": list(matryoshka),
    }
    return orjson.dumps({"object": "list", "data": [entry]})


def _field(data: Mapping[str, object], name: str) -> object:
    """Return a field under whichever of its names it was sent; null is the same as absent."""
    return next((data[key] for key in ALIASES[name] if data.get(key) is not None), None)


def _items(value: object, modality: object) -> list[Item]:
    if value is None:
        raise RequestError("the field 'input' is missing; send a list of texts and images")
    if modality not in (None, "text", "image"):
        raise OptionError(f"modality is {modality!r}; choose 'text' or 'image'")
    values = value if isinstance(value, list) else [value]
    return [_item(index, item, modality == "image") for index, item in enumerate(values)]


def _item(index: int, value: object, plain_is_image: bool) -> Item:
    if isinstance(value, str):
        is_image = plain_is_image or value.startswith("data:image/")
        return ImageItem(value) if is_image else TextItem(value)
    if isinstance(value, dict):
        if isinstance(text := value.get("text"), str) and not any(k in value for k in IMAGE_KEYS):
            return TextItem(text)
        source = next((value[key] for key in IMAGE_KEYS if key in value), None)
        if isinstance(source, dict):
            source = source.get("url")
        if isinstance(source, str) and value.get("text") is None:
            return ImageItem(source)
    raise RequestError(
        f'item {index} is {_json_type(value)}; send a string, {{"text": string}} or '
        f'{{"image": URL or base64}}'
    )


def _task(value: object) -> str | None:
    if value is None or value in DOCUMENT_TASKS:
        return None
    if value != QUERY_TASK:
        raise OptionError(f"task is {value!r}; choose {QUERY_TASK!r} or leave it out")
    return QUERY_TASK


def _dimensions(value: object) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise OptionError(f"dimensions is {_json_type(value)}; it must be a whole number")
    return value


def _flag(name: str, value: object, default: bool) -> bool:
    if value is None:
        return default
    if not isinstance(value, bool):
        raise OptionError(f"{name} is {_json_type(value)}; it must be true or false")
    return value


def _encoding(value: object) -> Encoding:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or value == "float":
        return "float"
    if value == "base64":
        return "base64"
    raise OptionError(f"embedding_type is {value!r}; choose one of {', '.join(ENCODINGS)}")


def _base64_rows(rows: Rows) -> list[str]:
    return [base64.b64encode(row).decode("ascii") for row in rows.astype(np.dtype("<f4"))]


def _json_type(value: object) -> str:
    """Name a JSON value's type, and short values themselves, for an error message."""
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null"}
    return names.get(type(value)) or f"{value!r:.40}"
