"""Requests as they come over HTTP, in the product's own terms.

Requests of the Jina and of the OpenAI embedding API are taken, with the aliases that clients send
(`fields`) and their forms of texts and pictures (`items`); fields that are not known are ignored,
as both do. Answers are written by `rendering`; their types are in `shapes`.
"""

from dataclasses import dataclass
from typing import Any

import orjson

from deployments.errors import RequestError
from deployments.messages import Item, Lane
from deployments.model.architecture import QUERY_TASK
from serve_app.api import fields, items, values
from serve_app.api.errors import FieldError
from serve_app.api.rendering import ENCODINGS, PACKED, Encoding
from serve_app.api.shapes import ModelList
from serve_app.api.values import Served


@dataclass(frozen=True)
class EmbeddingRequest:
    """A request in the product's own terms."""

    items: list[Item]
    task: str | None
    dimensions: int | None
    normalized: bool
    truncate: bool
    encodings: tuple[Encoding, ...]
    partial: bool
    lane: Lane | None
    timeout_s: float | None


def parse(body: bytes, served: Served) -> EmbeddingRequest:
    """Read the body of `POST /v1/embeddings`.

    Raises:
        RequestError: not JSON, or not of the documented shape.
        OptionError: an option outside its values.
        UnknownModelError: a model that is not served here.
    """
    data = _object(body, served.config.router.max_json_depth)
    fields.MODEL.read(data, served)
    fields.LATE_CHUNKING.read(data, served)
    modality = fields.MODALITY.read(data, served)
    token_ids = fields.TOKEN_IDS.read(data, served)
    value = values.required(fields.INPUT.read(data, served))
    limit = served.config.router.max_items_per_request
    if isinstance(value, list) and len(value) > limit and not token_ids:
        raise RequestError(f"{len(value):,} items; the limit is {limit:,} in one request")
    dimensions = fields.DIMENSIONS.read(data, served)
    encodings = fields.ENCODING.read(data, served)
    _check_bits(encodings, dimensions)
    return EmbeddingRequest(
        items=items.read(value, modality, token_ids),
        task=fields.TASK.read(data, served),
        dimensions=dimensions,
        normalized=fields.NORMALIZED.read(data, served),
        truncate=fields.TRUNCATE.read(data, served),
        encodings=encodings,
        partial=fields.ERRORS.read(data, served) == "partial",
        lane=fields.LANE.read(data, served),
        timeout_s=fields.TIMEOUT_S.read(data, served),
    )


def models(served: Served, fingerprints: dict[str, str]) -> ModelList:
    """Return the answer to `GET /v1/models`."""
    config, architecture = served.config, served.architecture
    router, images = config.router, config.images
    towers = {"text": config.text, "image": config.vision}
    return {
        "object": "list",
        "data": [
            {
                "id": config.model.served_name,
                "object": "model",
                "created": 0,
                "owned_by": "jina-clip-serve",
                "source": config.model.source,
                "aliases": list(config.model.aliases),
                "modalities": [name for name, tower in towers.items() if tower.enabled],
                "tasks": [QUERY_TASK],
                "dimensions": architecture.width,
                "matryoshka_dimensions": list(architecture.matryoshka_dimensions),
                "embedding_types": list(ENCODINGS),
                "image_price_tokens": served.image_price_tokens,
                "limits": {
                    "max_items_per_request": router.max_items_per_request,
                    "max_tokens_per_text": architecture.text.max_tokens,
                    "max_body_bytes": router.max_body_bytes,
                    "max_image_bytes": images.max_image_bytes,
                    "max_image_pixels": images.max_pixels,
                    "max_timeout_s": router.timeout_s,
                },
                "fingerprints": fingerprints,
            }
        ],
    }


def _object(body: bytes, max_depth: int) -> dict[str, object]:
    """Return the JSON object of a body.

    Raises:
        RequestError: not JSON, not an object, or nested too deeply.
    """
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not valid JSON: {error.msg}") from None
    if not isinstance(data, dict):
        raise RequestError(f"the body must be a JSON object, not {items.type_of(data)}")
    level: list[Any] = [data]
    for _ in range(max_depth):
        level = [x for one in level for x in _children(one) if isinstance(x, (dict, list))]
        if not level:
            return data
    raise RequestError(f"the body is nested more than {max_depth} levels deep")


def _children(value: dict[str, Any] | list[Any]) -> Any:  # noqa: ANN401 - JSON
    return value.values() if isinstance(value, dict) else value


def _check_bits(encodings: tuple[Encoding, ...], dimensions: int | None) -> None:
    if dimensions is not None and dimensions % 8 and any(name in PACKED for name in encodings):
        raise FieldError(
            f"dimensions is {dimensions}; binary and ubinary put 8 dimensions into a byte, so it "
            "must be a multiple of 8",
            "dimensions",
            "multiple_of",
            dimensions,
        )
