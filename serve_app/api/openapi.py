"""The OpenAPI 3.1 document, made from the model of a request and the types of the answers."""

from functools import lru_cache
from importlib.metadata import version
from typing import Any

from pydantic import AliasChoices, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from serve_app.api import arrow, codings
from serve_app.api.answers import ClassificationList, EmbeddingList, Fault, ModelList, State
from serve_app.api.errors import INTERNAL, TABLE
from serve_app.api.rendering import JSON, NPY
from serve_app.api.request import ClassificationRequest, EmbeddingRequest, ItemsRequest
from serve_app.api.served import Served
from serve_app.batches import document as batches

Schema = dict[str, Any]

REF = "#/components/schemas/{model}"
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGA"
    "hKmMIQAAAABJRU5ErkJggg=="
)
REQUEST_EXAMPLES: Schema = {
    "jina": {
        "summary": "Jina: a text and an image, cut to 64 dimensions",
        "value": {
            "model": "jina-clip-v2",
            "dimensions": 64,
            "input": [{"text": "a red apple"}, {"image": PIXEL}],
        },
    },
    "query": {
        "summary": "Jina: a query, as bits",
        "value": {
            "model": "jina-clip-v2",
            "task": "retrieval.query",
            "embedding_type": "ubinary",
            "input": ["where is the cat?"],
        },
    },
    "openai": {
        "summary": "OpenAI: base64",
        "value": {
            "model": "jina-clip-v2",
            "encoding_format": "base64",
            "input": "a red apple",
        },
    },
    "partial": {
        "summary": "A broken image among good items",
        "value": {
            "model": "jina-clip-v2",
            "errors": "partial",
            "input": ["a red apple", {"image": "aGVsbG8="}],
        },
    },
}
LABEL_EXAMPLES: Schema = {
    "labels": {
        "summary": "A text and an image, three labels",
        "value": {
            "model": "jina-clip-v2",
            "labels": ["fruit", "animals", "vehicles"],
            "input": [{"text": "a red apple"}, {"image": PIXEL}],
        },
    },
    "groups": {
        "summary": "Two choices, probabilities by the trained temperature",
        "value": {
            "model": "jina-clip-v2",
            "logit_scale": True,
            "labels": {"colour": ["red", "blue"], "kind": ["fruit", "animals"]},
            "input": ["a red apple"],
        },
    },
}
HEADERS = (
    ("X-Request-Id", {"type": "string"}, "Comes back in the answer and in errors."),
    (
        "Content-Encoding",
        {"type": "string", "enum": list(codings.taken())},
        "How the body is packed; its limit holds for it unpacked too.",
    ),
    ("X-Priority", {"type": "string", "enum": ["interactive", "bulk"]}, "As the field `priority`."),
    ("X-Timeout-S", {"type": "number", "exclusiveMinimum": 0}, "As the field `timeout_s`."),
    (
        "X-Embedding-Fingerprint",
        {"type": "string"},
        "Refuse with 409 unless this is what answers; `text:... vision:...` as in an answer.",
    ),
)
RESPONSE_HEADERS = (
    "Server-Timing",
    "X-Embedding-Fingerprint",
    "X-Embedding-Usage",
    "X-Embedding-Replicas",
)
STATUSES = {
    400: "Something in the request has to be changed; the message names the item",
    401: "No API key, or not a known one",
    404: "Not here, or another key's",
    408: "The body did not arrive in time; the connection is closed",
    409: "Other weights, precision or preprocessing than asked for",
    413: "More than the server takes in one request",
    415: "A Content-Encoding that is not read here",
    422: "An option outside its values",
    429: "Too much is under way; Retry-After says when to come back",
    500: "A fault of the server",
    503: "A tower cannot be reached; retry shortly",
    504: "The time is up",
}

NOT_HERE = 404


class Untitled(GenerateJsonSchema):
    """Leaves out the titles that only repeat the names of fields."""

    def field_title_should_be_set(self, schema: object) -> bool:
        """Return that no field gets one."""
        return False


@lru_cache(maxsize=1)
def document(served: Served) -> Schema:
    """Return the OpenAPI document of a server."""
    schemas = _schemas()
    for shape in (EmbeddingRequest, ClassificationRequest):
        request = request_schema(served, shape)
        schemas |= request.pop("$defs") | {shape.__name__: request}
    document: Schema = {
        "openapi": "3.1.0",
        "info": {
            "title": "jina-clip-serve",
            "version": version("jina-clip-serve"),
            "description": f"Texts and images to vectors of one space, {served.names[0]}.",
        },
        "servers": [{"url": ".", "description": "where this document is"}],
        "paths": {
            "/v1/embeddings": {"post": _embeddings()},
            "/v1/classify": {"post": _classification()},
            "/v1/models": {"get": _get("What is served, its limits", ModelList)},
            "/health": {"get": _get("Whether this process is alive", State)},
            "/ready": {"get": _get("Whether every tower answers", State, not_yet=True)},
        },
        "components": {"schemas": schemas},
    }
    if served.config.batches.folder is not None:
        document["paths"] |= batches.paths(REF, _faults)
        schemas |= batches.schemas(REF, Untitled)
    if served.config.asks_for_keys:
        document["components"]["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer"},
            "azure": {"type": "apiKey", "in": "header", "name": "api-key"},
        }
        document["security"] = [{"key": []}, {"azure": []}]
    return document


def request_schema(served: Served, shape: type[ItemsRequest] = EmbeddingRequest) -> Schema:
    """Return the schema of a request; the first name of each field, aliases in its description."""
    schema = shape.model_json_schema(ref_template=REF, schema_generator=Untitled)
    for field, aliases in names(shape).items():
        name, *others = aliases
        about = schema["properties"][name]
        if about.get("default", ...) is None:
            del about["default"]
        if others:
            about["description"] += f" Also as {', '.join(f'`{other}`' for other in others)}."
        if field not in ("items", "labels") and {"type": "null"} not in about.get("anyOf", []):
            kept = {key: about.pop(key) for key in ("description", "default") if key in about}
            schema["properties"][name] = {"anyOf": [about, {"type": "null"}], **kept}
    if "dimensions" in schema["properties"]:
        limits = {"minimum": 1, "maximum": served.architecture.width}
        schema["properties"]["dimensions"]["anyOf"][0] |= limits
    schema["properties"]["model"]["examples"] = list(served.names)
    schema["properties"] = {"input": schema["properties"]["input"], **schema["properties"]}
    return schema


def names(shape: type[ItemsRequest] = EmbeddingRequest) -> dict[str, list[str]]:
    """Return the names under which each field of a request is sent; the first is documented."""
    found = {}
    for field, info in shape.model_fields.items():
        alias = info.validation_alias
        choices = alias.choices if isinstance(alias, AliasChoices) else [alias or field]
        found[field] = [str(choice) for choice in choices]
    return found


def codes(status: int) -> list[str]:
    """Return the error codes of a status."""
    answers = [*TABLE.values(), INTERNAL]
    return sorted({answer.code for answer in answers if answer.status == status})


def _embeddings() -> Schema:
    post = _post("EmbeddingRequest", REQUEST_EXAMPLES, EmbeddingList)
    about = {"tags": ["Embeddings"], "summary": "Embed texts and images", "operationId": "embed"}
    return about | post


def _classification() -> Schema:
    post = _post("ClassificationRequest", LABEL_EXAMPLES, ClassificationList)
    about = {"tags": ["Embeddings"], "summary": "Score labels for texts and images"}
    return about | {"operationId": "classify"} | post


def _post(shape: str, examples: Schema, answered: type) -> Schema:
    binary = {"schema": {"type": "string", "format": "binary"}}
    parameters = [
        {"name": name, "in": "header", "schema": schema, "description": description}
        for name, schema, description in HEADERS
    ]
    answer = {
        "description": "One row to an item, in the order of the request",
        "headers": {name: {"schema": {"type": "string"}} for name in RESPONSE_HEADERS},
        "content": {JSON: _ref(answered), NPY: binary, arrow.MEDIA_TYPE: binary},
    }
    body = {"schema": {"$ref": REF.format(model=shape)}, "examples": examples}
    return {
        "parameters": parameters,
        "requestBody": {"required": True, "content": {JSON: body}},
        "responses": {"200": answer} | _faults(*(x for x in STATUSES if x != NOT_HERE)),
    }


def _get(summary: str, shape: type, not_yet: bool = False) -> Schema:
    answer = {"description": summary, "content": {JSON: _ref(shape)}}
    responses = {"200": answer} | _faults(401, 500)
    if not_yet:
        responses["503"] = answer | {"description": "Not yet, or not any more"}
    return {"tags": ["Server"], "summary": summary, "responses": responses}


def _faults(*statuses: int) -> Schema:
    return {
        str(status): {
            "description": f"{STATUSES[status]}: {', '.join(codes(status))}",
            "content": {JSON: _ref(Fault)},
        }
        for status in statuses
    }


def _ref(shape: type) -> Schema:
    return {"schema": {"$ref": REF.format(model=shape.__name__)}}


def _schemas() -> Schema:
    """Return the schemas of all answers, each under its type's name."""
    schemas: Schema = {}
    for shape in (EmbeddingList, ClassificationList, Fault, ModelList, State):
        schema = TypeAdapter(shape).json_schema(
            ref_template=REF, schema_generator=Untitled, mode="serialization"
        )
        schemas |= schema.pop("$defs", {})
        schemas[shape.__name__] = schema
    return schemas
