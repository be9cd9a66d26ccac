"""A line of a batch is asked of the application itself: what it answers is what HTTP would."""

from uuid import uuid4

import orjson
from starlette.applications import Starlette
from starlette.types import Message, Scope

from deployments.errors import UnauthorizedError
from serve_app.api.errors import fault_of
from serve_app.api.keys import ApiKey
from serve_app.batches.job import Answer
from serve_app.batches.objects import Batch

CALLER = "jina_clip_serve.caller"
"""In the scope of a request that comes from inside: the key that it counts as."""


async def ask(app: Starlette, key: ApiKey | None, batch: Batch, body: bytes) -> Answer:
    """Answer a line's body by the application's own route.

    The key's lane and rates are for what comes over HTTP; a batch is bulk work in any case.

    Args:
        app: the application.
        key: of the batch's owner; None where it is not known any more.
        batch: whose endpoint is asked.
        body: JSON.
    """
    request_id = uuid4().hex
    if key is None:
        error = UnauthorizedError("the API key of this batch is not known any more")
        status, fault = fault_of(error, request_id)
        return Answer(status, request_id, orjson.dumps(fault))
    # Counted apart from what the key has under way over HTTP.
    unlimited = {"requests_per_minute": None, "max_concurrent_requests": None}
    caller = key.model_copy(update={"lane": "bulk", "sha256": f"{key.sha256}-batch"} | unlimited)
    headers = {"content-type": "application/json", "x-request-id": request_id}
    scope: Scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": batch.endpoint,
        "raw_path": batch.endpoint.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        CALLER: caller,
    }
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    begun = dict(sent[0]["headers"])
    wait_s = float(begun.get(b"retry-after-ms", b"1000")) / 1e3
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return Answer(sent[0]["status"], request_id, content, wait_s)
