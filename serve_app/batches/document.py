"""Files and batches in the OpenAPI document."""

from collections.abc import Callable
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from serve_app.batches.objects import Batch, File, NewBatch

Schema = dict[str, Any]

JSON = "application/json"
TAG = "Batches"

UPLOAD: Schema = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "contentMediaType": "application/jsonl"},
        "purpose": {"const": "batch"},
        "expires_after[anchor]": {"const": "created_at"},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600},
    },
}
"""The form of `POST /v1/files`."""


def paths(ref: str, faults: Callable[..., Schema]) -> dict[str, Schema]:
    """Return the operations.

    Args:
        ref: form of a reference to a schema, with `{model}` in it.
        faults: makes the answers of error statuses.
    """

    def schema(name: str) -> Schema:
        return {"schema": {"$ref": ref.format(model=name)}}

    def some(name: str) -> Schema:
        items = {"type": "array", "items": {"$ref": ref.format(model=name)}}
        known = {"object": {"const": "list"}, "data": items, "has_more": {"type": "boolean"}}
        return {"schema": {"type": "object", "properties": known}}

    def operation(
        name: str, summary: str, content: Schema, *statuses: int, **more: object
    ) -> Schema:
        responses = {"200": {"description": summary, "content": content}}
        about = {"tags": [TAG], "operationId": name, "summary": summary}
        return about | {"responses": responses | faults(400, 401, 404, 500, *statuses)} | more

    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    page = [
        {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1}},
        {"name": "after", "in": "query", "schema": {"type": "string"}},
    ]
    file, batch = {JSON: schema("File")}, {JSON: schema("Batch")}
    one: Schema = {"parameters": [name]}
    upload: Schema = {"requestBody": {"content": {"multipart/form-data": {"schema": UPLOAD}}}}
    new: Schema = {"requestBody": {"content": {JSON: schema("NewBatch")}}}
    lines = {"application/jsonl": {"schema": {"type": "string"}}}
    deleted = {JSON: {"schema": {"type": "object"}}}
    listed: Schema = {"parameters": page}
    return {
        "/v1/files": {
            "post": operation("upload", "Keep a file of lines", file, 408, 413, 422, **upload),
            "get": operation("files", "Your files", {JSON: some("File")}, 422, **listed),
        },
        "/v1/files/{name}": {
            "get": operation("file", "A file's record", file, **one),
            "delete": operation("delete", "Delete a file", deleted, **one),
        },
        "/v1/files/{name}/content": {"get": operation("content", "A file's lines", lines, **one)},
        "/v1/batches": {
            "post": operation("batch", "Answer a file's lines", batch, 408, 413, 422, **new),
            "get": operation("batches", "Your batches", {JSON: some("Batch")}, 422, **listed),
        },
        "/v1/batches/{name}": {"get": operation("progress", "What became of it", batch, **one)},
        "/v1/batches/{name}/cancel": {"post": operation("cancel", "End it early", batch, **one)},
    }


def schemas(ref: str, generator: type[GenerateJsonSchema]) -> Schema:
    """Return the schemas that the operations name."""
    found: Schema = {}
    for shape in (File, Batch, NewBatch):
        made = shape.model_json_schema(ref_template=ref, schema_generator=generator)
        found |= made.pop("$defs", {})
        made["properties"].pop("owner", None)
        made["required"] = [name for name in made.get("required", []) if name != "owner"]
        found[shape.__name__] = made
    return found
