"""The HTTP routes of files and batches."""

import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from deployments.config import BatchesConfig
from deployments.errors import NotFoundError, RequestError
from serve_app.api.body import parts_of, read_body
from serve_app.api.errors import FieldError
from serve_app.api.exchange import json_response
from serve_app.batches.folder import Folder, new_id
from serve_app.batches.objects import WINDOW_S, Batch, ExpiresAfter, File, NewBatch, Record
from serve_app.batches.threads import to_thread

if TYPE_CHECKING:
    from deployments.router import Router

R = TypeVar("R", bound=Record)
M = TypeVar("M", bound=BaseModel)

PURPOSE = "batch"
MOST_SHOWN = 10_000
FEW_SHOWN = 20
MAX_DIGITS = 9  # of a number in an address; Python reads none of thousands
COPY_BYTES = 1 << 20
EXPIRES_AFTER = "expires_after"


Owned = Callable[[Request, "Router", str], Awaitable[Response]]
"""An endpoint that is told the owner."""


class Routes:
    """Answers for one folder.

    Args:
        folder: None where batches are off.
        config: limits and defaults.
    """

    def __init__(self, folder: Folder | None, config: BatchesConfig) -> None:
        self._folder = folder
        self._config = config

    @property
    def folder(self) -> Folder:
        """The folder.

        Raises:
            NotFoundError: there is none.
        """
        if self._folder is None:
            raise NotFoundError(
                "batches are off: the server's batches.folder is not set to a folder that all its "
                "nodes share"
            )
        return self._folder

    def table(self) -> "list[tuple[str, Owned, tuple[str, ...]]]":
        """Return the paths, what answers them, and their methods."""
        return [
            ("/v1/files", self.upload, ("POST",)),
            ("/v1/files", self.files, ("GET",)),
            ("/v1/files/{name}", self.file, ("GET", "DELETE")),
            ("/v1/files/{name}/content", self.content, ("GET",)),
            ("/v1/batches", self.create, ("POST",)),
            ("/v1/batches", self.batches, ("GET",)),
            ("/v1/batches/{name}", self.batch, ("GET",)),
            ("/v1/batches/{name}/cancel", self.cancel, ("POST",)),
        ]

    async def upload(self, request: Request, router: "Router", owner: str) -> Response:
        """Answer `POST /v1/files`: a form with `file`, `purpose` and when it expires."""
        folder = self.folder
        parts = parts_of(request, router.config.router, self._config.max_file_bytes)
        parser = MultiPartParser(request.headers, parts, max_files=1, max_fields=8)
        try:
            form = await parser.parse()
        except (MultiPartException, KeyError) as error:
            message = getattr(error, "message", "no boundary")
            raise RequestError(
                f"send multipart/form-data with file and purpose: {message}"
            ) from None
        try:
            upload, purpose = form.get("file"), form.get("purpose")
            if not isinstance(upload, UploadFile):
                raise FieldError("send the lines as the file of a form", "file", "missing")
            if purpose is None:
                raise FieldError(
                    f"the field 'purpose' is missing; send {PURPOSE!r}", "purpose", "missing"
                )
            if purpose != PURPOSE:
                raise FieldError(
                    f"purpose is {str(purpose)[:40]!r}; only 'batch' is served", "purpose"
                )
            seconds = self._kept_s(_expiry(form))
            file = await to_thread(self._kept, folder, upload, owner, seconds)
        finally:
            await form.close()
        return json_response(file.shown())

    async def files(self, request: Request, _router: "Router", owner: str) -> Response:
        """Answer `GET /v1/files`."""
        files = await to_thread(self.folder.owned, File, owner)
        purpose = request.query_params.get("purpose")
        if request.query_params.get("order") == "asc":
            files.reverse()
        return json_response(page([x for x in files if purpose in (None, x.purpose)], request))

    async def file(self, request: Request, _router: "Router", owner: str) -> Response:
        """Answer `GET /v1/files/ID`, or delete it."""
        file = await self._named(File, request, owner)
        if request.method == "DELETE":
            await to_thread(self.folder.delete, file)
            return json_response({"id": file.id, "object": "file", "deleted": True})
        return json_response(file.shown())

    async def content(self, request: Request, _router: "Router", owner: str) -> Response:
        """Answer `GET /v1/files/ID/content`."""
        file = await self._named(File, request, owner)
        path = self.folder.data(file.id)
        return FileResponse(path, media_type="application/jsonl", filename=file.filename)

    async def create(self, request: Request, router: "Router", owner: str) -> Response:
        """Answer `POST /v1/batches`."""
        folder = self.folder
        with router.bytes.hold("interactive") as hold:
            body = await read_body(request, router.config.router, hold)
        asked = _read(partial(NewBatch.model_validate_json, body))
        await to_thread(folder.load, File, asked.input_file_id, owner)
        now = int(folder.clock())
        batch = Batch(
            id=new_id("batch_"),
            owner=owner,
            created_at=now,
            expires_at=now + WINDOW_S,
            output_expires_after_s=self._kept_s(asked.output_expires_after),
            **asked.model_dump(exclude={"output_expires_after"}),
        )
        await to_thread(folder.begin, batch)
        return json_response(batch.shown())

    async def batches(self, request: Request, _router: "Router", owner: str) -> Response:
        """Answer `GET /v1/batches`."""
        found = await to_thread(self.folder.owned, Batch, owner)
        return json_response(page(found, request))

    async def batch(self, request: Request, _router: "Router", owner: str) -> Response:
        """Answer `GET /v1/batches/ID`."""
        return json_response((await self._named(Batch, request, owner)).shown())

    async def cancel(self, request: Request, router: "Router", owner: str) -> Response:
        """Answer `POST /v1/batches/ID/cancel`."""
        await to_thread(self.folder.end, await self._named(Batch, request, owner))
        return await self.batch(request, router, owner)

    async def _named(self, shape: type[R], request: Request, owner: str) -> R:
        """Return the record of the path; a thread, because the folder may be far away."""
        return await to_thread(self.folder.load, shape, request.path_params["name"], owner)

    def _kept_s(self, policy: ExpiresAfter | None) -> int | None:
        """Return how long a file is to be kept."""
        return policy.seconds if policy else self._config.files_expire_after_s

    @staticmethod
    def _kept(folder: Folder, upload: UploadFile, owner: str, kept_s: int | None) -> File:
        """Keep an upload, its bytes before its record."""
        file_id = new_id("file-")
        path = folder.data(file_id)
        with path.open("wb") as target:
            shutil.copyfileobj(upload.file, target, COPY_BYTES)
        now_s = int(folder.clock())
        file = File(
            id=file_id,
            owner=owner,
            created_at=now_s,
            expires_at=None if kept_s is None else now_s + kept_s,
            bytes=path.stat().st_size,
            filename=upload.filename or "batch.jsonl",
            purpose=PURPOSE,
        )
        folder.save(file)
        return file


def _expiry(form: FormData) -> ExpiresAfter | None:
    """Read the fields that OpenAI's clients make of `expires_after`."""
    names = {name: f"{EXPIRES_AFTER}[{name}]" for name in ExpiresAfter.model_fields}
    sent = {name: form[field] for name, field in names.items() if field in form}
    return _read(partial(ExpiresAfter.model_validate, sent), EXPIRES_AFTER) if sent else None


def _read(read: Callable[[], M], name: str = "") -> M:
    """Return what is read, or say which field of it is wrong.

    Raises:
        FieldError: the first that is.
    """
    try:
        return read()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, filter(None, (name, *first["loc"]))))
        raise FieldError(f"{field or 'the body'}: {first['msg']}", field, first["type"]) from None


def page(records: Sequence[Record], request: Request) -> dict[str, Any]:
    """Return a part of a list: up to `limit` records behind the id `after`.

    Raises:
        FieldError: no such limit, or no such id.
    """
    asked: Mapping[str, str] = request.query_params
    limit, after = asked.get("limit", str(FEW_SHOWN)), asked.get("after")
    if not limit.isdecimal() or len(limit) > MAX_DIGITS or not 1 <= int(limit) <= MOST_SHOWN:
        raise FieldError(f"limit is {limit[:20]!r}; send 1 to {MOST_SHOWN:,}", "limit")
    ids = [None, *(record.id for record in records)]
    if after not in ids:
        raise FieldError(f"after is {str(after)[:60]!r}, which is not in the list", "after")
    start = ids.index(after)
    shown = records[start : start + int(limit)]
    return {
        "object": "list",
        "data": [record.shown() for record in shown],
        "first_id": shown[0].id if shown else None,
        "last_id": shown[-1].id if shown else None,
        "has_more": start + len(shown) < len(records),
    }
