"""How the client reaches a server: HTTP or an application handle, with retries."""

import asyncio
from functools import cached_property
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pybase64
from httpx_retries import aretry_request, retry_request

from serve_app.api.rendering import JSON
from serve_app.client.calls import A
from serve_app.client.inputs import Batch, HandleItem
from serve_app.client.retries import LATER, AnswerError, SpreadRetry

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle


class HttpTransport:
    """Asks a server over HTTP."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        model: str | None,
        timeout_s: float,
        retry: SpreadRetry,
        transport: httpx.BaseTransport | httpx.AsyncBaseTransport | None,
    ) -> None:
        self._url = url.rstrip("/").removesuffix("/embeddings").removesuffix("/v1")
        self._model = model
        self._retry = retry
        headers = {"content-type": JSON}
        if api_key:
            headers["authorization"] = f"Bearer {api_key}"
        self._settings: dict[str, Any] = {
            "headers": headers,
            "timeout": timeout_s,
            "transport": transport,
        }

    def send(self, batch: Batch[A]) -> A:
        """Return the answer to a batch."""
        url, body = self._url + batch.call.path, self._body(batch)
        headers = {"accept": batch.call.accept}
        answer = retry_request(
            self._client, "POST", url, retry=self._retry, content=body, headers=headers
        )
        return batch.call.of_http(self._good(answer))

    async def send_async(self, batch: Batch[A]) -> A:
        """Return the answer to a batch; files are read and encoded off the event loop."""
        url, body = self._url + batch.call.path, await asyncio.to_thread(self._body, batch)
        headers = {"accept": batch.call.accept}
        answer = await aretry_request(
            self._async_client, "POST", url, retry=self._retry, content=body, headers=headers
        )
        return batch.call.of_http(self._good(answer))

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

    def _body(self, batch: Batch[A]) -> bytes:
        items = [_json_item(item) for item in batch.items()]
        return orjson.dumps({"model": self._model, "input": items, **batch.call.fields})

    def _good(self, answer: httpx.Response) -> httpx.Response:
        """Return an answer that is one.

        Raises:
            AnswerError: the server refused, or something between answered in its place.
        """
        if answer.status_code == httpx.codes.OK:
            return answer
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

    def send(self, batch: Batch[A]) -> A:
        """Return the answer to a batch."""
        items, retry = batch.items(), self._retry
        while True:
            try:
                response = self._method(batch).remote(items, **batch.call.fields)
                return batch.call.of_handle(response.result(timeout_s=self._timeout_s))
            except LATER as error:
                retry = retry.after(error)
                retry.sleep(error)

    async def send_async(self, batch: Batch[A]) -> A:
        """Return the answer to a batch; files are read and encoded off the event loop."""
        items, retry = await asyncio.to_thread(batch.items), self._retry
        while True:
            try:
                async with asyncio.timeout(self._timeout_s):
                    answer = await self._method(batch).remote(items, **batch.call.fields)
                return batch.call.of_handle(answer)
            except LATER as error:
                retry = retry.after(error)
                await retry.asleep(error)

    def close(self) -> None:
        """Leave the handle to its owner."""

    async def aclose(self) -> None:
        """Leave the handle to its owner."""

    def _method(self, batch: Batch[A]) -> "DeploymentHandle[Any]":
        return getattr(self._handle, batch.call.method)  # type: ignore[no-any-return]


def _json_item(item: HandleItem) -> dict[str, str]:
    """Return an item as it is sent: bytes become base64."""
    return {
        key: pybase64.b64encode_as_string(value) if isinstance(value, bytes) else value
        for key, value in item.items()
    }
