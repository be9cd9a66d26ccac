"""How the client reaches a server: HTTP or an application handle, with retries."""

import asyncio
import io
from functools import cached_property
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import orjson
import pybase64
from httpx_retries import aretry_request, retry_request

from deployments.messages import Embeddings
from deployments.model.output import Rows
from serve_app.api.rendering import JSON, NPY
from serve_app.client.inputs import Batch, HandleItem
from serve_app.client.retries import LATER, AnswerError, SpreadRetry

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

PATH = "/v1/embeddings"


class HttpTransport:
    """Asks a server over HTTP; answers come as .npy, the smallest and fastest body."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        model: str | None,
        timeout_s: float,
        retry: SpreadRetry,
        transport: httpx.BaseTransport | httpx.AsyncBaseTransport | None,
    ) -> None:
        self._url = url.rstrip("/").removesuffix(PATH).removesuffix("/v1") + PATH
        self._model = model
        self._retry = retry
        headers = {"accept": f"{NPY}, {JSON};q=0.5", "content-type": JSON}
        if api_key:
            headers["authorization"] = f"Bearer {api_key}"
        self._settings: dict[str, Any] = {
            "headers": headers,
            "timeout": timeout_s,
            "transport": transport,
        }

    def send(self, batch: Batch) -> Rows:
        """Return the rows of a batch."""
        body = self._body(batch)
        answer = retry_request(self._client, "POST", self._url, retry=self._retry, content=body)
        return self._rows(answer)

    async def send_async(self, batch: Batch) -> Rows:
        """Return the rows of a batch; files are read and encoded off the event loop."""
        body = await asyncio.to_thread(self._body, batch)
        answer = await aretry_request(
            self._async_client, "POST", self._url, retry=self._retry, content=body
        )
        return self._rows(answer)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._async_client.aclose()

    @cached_property
    def _client(self) -> httpx.Client:
        return httpx.Client(**self._settings)

    @cached_property
    def _async_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(**self._settings)

    def _body(self, batch: Batch) -> bytes:
        options = batch.options
        body = {
            "model": self._model,
            "input": [_json_item(item) for item in batch.items()],
            "task": options.task,
            "dimensions": options.dimensions,
            "normalized": options.normalized,
            "truncate": options.truncate,
        }
        return orjson.dumps(body)

    def _rows(self, answer: httpx.Response) -> Rows:
        """Return the rows of an answer.

        Raises:
            AnswerError: the server refused, or something between answered in its place.
        """
        if answer.status_code == httpx.codes.OK:
            rows: Rows = np.load(io.BytesIO(answer.content), allow_pickle=False)
            return rows
        try:
            fault = answer.json()
            message, code, request_id = (str(fault[x]) for x in ("detail", "code", "request_id"))
        except (ValueError, KeyError, TypeError):
            message, code, request_id = answer.text[:200], "", ""
        asked_s = self._retry.asked_s(answer)
        raise AnswerError(message, answer.status_code, code, request_id, asked_s)


class HandleTransport:
    """Calls an application handle, `serve.get_app_handle("embeddings")`; no HTTP, no base64."""

    def __init__(
        self, handle: "DeploymentHandle[Any]", timeout_s: float, retry: SpreadRetry
    ) -> None:
        self._handle = handle
        self._timeout_s = timeout_s
        self._retry = retry

    def send(self, batch: Batch) -> Rows:
        """Return the rows of a batch."""
        arguments = self._arguments(batch)
        retry = self._retry
        while True:
            try:
                response = self._handle.embed.remote(*arguments)
                answer: Embeddings = response.result(timeout_s=self._timeout_s)
                return answer.embeddings
            except LATER as error:
                retry = retry.after(error)
                retry.sleep(error)

    async def send_async(self, batch: Batch) -> Rows:
        """Return the rows of a batch; files are read and encoded off the event loop."""
        arguments = await asyncio.to_thread(self._arguments, batch)
        retry = self._retry
        while True:
            try:
                async with asyncio.timeout(self._timeout_s):
                    answer: Embeddings = await self._handle.embed.remote(*arguments)
                return answer.embeddings
            except LATER as error:
                retry = retry.after(error)
                await retry.asleep(error)

    def close(self) -> None:
        """Leave the handle to its owner."""

    async def aclose(self) -> None:
        """Leave the handle to its owner."""

    def _arguments(self, batch: Batch) -> tuple[Any, ...]:
        options = batch.options
        return (
            batch.items(),
            options.task,
            options.dimensions,
            options.normalized,
            options.truncate,
        )


def _json_item(item: HandleItem) -> dict[str, str]:
    """Return an item as it is sent: bytes become base64."""
    return {
        key: pybase64.b64encode_as_string(value) if isinstance(value, bytes) else value
        for key, value in item.items()
    }
