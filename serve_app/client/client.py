"""A Python client with the signatures of the model card's snippets, over HTTP or by handle.

    model = Client("http://127.0.0.1:8000")   # in place of AutoModel.from_pretrained(...)
    rows = model.encode_text(["a red apple"], truncate_dim=512)

`encode_text` and `encode_image` are those of the transformers snippet, `encode` is that of the
sentence-transformers snippet. Two things differ on purpose: texts are embedded up to the model's
own limit, not cut at 512 tokens, and an image that cannot be had is an error, not a text.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from deployments.model.architecture import QUERY_TASK
from deployments.routing.classification import LabelsInput
from serve_app.client.calls import A, Scores, classification, embedding
from serve_app.client.inputs import (
    Batch,
    Image,
    Job,
    Output,
    batched,
    guessed_item,
    image_item,
    text_item,
    text_or_image,
)
from serve_app.client.progress import progress
from serve_app.client.retries import retry
from serve_app.client.transport import HandleTransport, HttpTransport

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

T = TypeVar("T")


class _Encoders:
    """The calls for vectors, whatever runs them."""

    def __init__(
        self,
        server: "str | DeploymentHandle[Any]",
        api_key: str | None = None,
        *,
        model: str | None = None,
        truncate_dim: int | None = None,
        concurrency: int = 4,
        timeout_s: float = 120,
        max_retries: int = 6,
        transport: httpx.BaseTransport | httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Make a client.

        Args:
            server: the URL that `jina-clip-serve up` prints, or an application's handle.
            api_key: sent as a bearer token.
            model: name to ask for; the server refuses a name that it does not serve.
            truncate_dim: width of the vectors where a call gives none.
            concurrency: batches of a call under way at once.
            timeout_s: for one batch.
            max_retries: further tries where the server is overloaded or cannot be reached.
            transport: of httpx, for tests and special networks.
        """
        self._truncate_dim = truncate_dim
        self._concurrency = concurrency
        again = retry(max_retries)
        self._transport: HttpTransport | HandleTransport
        if isinstance(server, str):
            self._transport = HttpTransport(server, api_key, model, timeout_s, again, transport)
        else:
            self._transport = HandleTransport(server, timeout_s, again)

    # Any: the reference's own return type depends on its arguments; see `_run`.
    def encode_text(
        self,
        sentences: str | Sequence[str],
        task: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | None = None,
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
        truncation: bool = True,
    ) -> Any:  # noqa: ANN401
        """Embed texts: float32 [n, dimensions], or [dimensions] for one string.

        Args:
            sentences: a string or a list of strings.
            task: `"retrieval.query"` for queries, None for everything else.
            batch_size: texts in one request.
            show_progress_bar: None shows it for long lists on a terminal.
            convert_to_numpy: False gives a list of tensors.
            convert_to_tensor: give one tensor, on `device`.
            device: of the tensors.
            normalize_embeddings: scale each row to length 1.
            truncate_dim: width to cut to before normalising.
            truncation: cut texts over the model's own limit instead of failing.

        Raises:
            AnswerError: the server refused.
        """
        width = truncate_dim or self._truncate_dim
        call = embedding(task, width, normalize_embeddings, truncation)
        output = Output(convert_to_numpy, convert_to_tensor, device)
        job = batched(sentences, batch_size, call, text_item)
        return self._run(job, show_progress_bar, partial(output.of, job.is_single))

    def encode_image(
        self,
        images: Image | Sequence[Image],
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | None = None,
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
    ) -> Any:  # noqa: ANN401
        """Embed images: float32 [n, dimensions], or [dimensions] for one image.

        The arguments but the first are those of `encode_text`. `images` are PIL images, URLs, data
        URIs, names of local files, or encoded bytes.

        Raises:
            AnswerError: the server refused.
            FileNotFoundError: a name that is neither a URL nor a local file.
        """
        width = truncate_dim or self._truncate_dim
        call = embedding(None, width, normalize_embeddings)
        output = Output(convert_to_numpy, convert_to_tensor, device)
        job = batched(images, batch_size, call, image_item)
        return self._run(job, show_progress_bar, partial(output.of, job.is_single))

    def encode(
        self,
        sentences: Image | Sequence[Image],
        prompt_name: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        assume_text_inputs: bool = False,
    ) -> Any:  # noqa: ANN401
        """Embed texts and images, mixed: float32 [n, dimensions], or [dimensions] for one item.

        A string is an image if it starts with `http` or `data:image/` or names a local file.

        With `assume_text_inputs` every string is a text. The other arguments are those of
        `encode_text`, with `prompt_name` for its `task`. Rows that are not normalised are cut from
        full rows of length 1, as sentence-transformers does.

        Raises:
            AnswerError: the server refused.
            ValueError: another `prompt_name`.
        """
        if prompt_name not in (None, QUERY_TASK):
            raise ValueError(f"prompt_name is {prompt_name!r}; the model has {QUERY_TASK!r} only")
        width = truncate_dim or self._truncate_dim
        call = embedding(prompt_name, width if normalize_embeddings else None, True, True)
        to_item = text_or_image if assume_text_inputs else guessed_item
        cut = None if normalize_embeddings else width
        output = Output(convert_to_numpy, convert_to_tensor, device, cut)
        job = batched(sentences, batch_size, call, to_item)
        return self._run(job, show_progress_bar, partial(output.of, job.is_single))

    # Any: what `join` returns, or what can be awaited for it.
    def _run(self, job: Job[A], show: bool | None, join: Callable[[Sequence[A]], T]) -> Any:  # noqa: ANN401
        raise NotImplementedError


class Client(_Encoders):
    """Calls a server and waits for its answer; see `_Encoders` for the arguments."""

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def classify(
        self,
        inputs: Image | Sequence[Image],
        labels: LabelsInput,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        logit_scale: bool = False,
        truncation: bool = False,
        assume_text_inputs: bool = False,
    ) -> Scores:
        """Score labels for texts and images, mixed; one input is a list of one.

        Args:
            inputs: as `encode` takes them.
            labels: texts to choose from, or lists of them by the names of groups.
            batch_size: inputs in one request, each of which carries all labels.
            show_progress_bar: None shows it for long lists on a terminal.
            logit_scale: score by the model's trained temperature, not by 1.
            truncation: cut texts over the model's own limit instead of failing.
            assume_text_inputs: every string is a text.

        Raises:
            AnswerError: the server refused.
        """
        call = classification(labels, logit_scale, truncation)
        to_item = text_or_image if assume_text_inputs else guessed_item
        job = batched(inputs, batch_size, call, to_item)
        return self._run(job, show_progress_bar, Scores.joined)

    def _run(self, job: Job[A], show: bool | None, join: Callable[[Sequence[A]], T]) -> T:
        with (
            progress(job, show) as advance,
            ThreadPoolExecutor(self._concurrency, "client") as threads,
        ):
            answers = [threads.submit(self._transport.send, batch) for batch in job.batches]
            try:
                parts = [advance(answer.result()) for answer in answers]
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        return join(parts)


class AsyncClient(_Encoders):
    """The same calls to be awaited: `rows = await client.encode_text([...])`."""

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    async def classify(
        self,
        inputs: Image | Sequence[Image],
        labels: LabelsInput,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        logit_scale: bool = False,
        truncation: bool = False,
        assume_text_inputs: bool = False,
    ) -> Scores:
        """Score labels for texts and images; see `Client.classify`."""
        call = classification(labels, logit_scale, truncation)
        to_item = text_or_image if assume_text_inputs else guessed_item
        job = batched(inputs, batch_size, call, to_item)
        return await self._run(job, show_progress_bar, Scores.joined)

    async def _run(self, job: Job[A], show: bool | None, join: Callable[[Sequence[A]], T]) -> T:
        free = asyncio.Semaphore(self._concurrency)
        with progress(job, show) as advance:
            sending = partial(self._send, free, advance)
            try:
                async with asyncio.TaskGroup() as group:
                    answers = [group.create_task(sending(batch)) for batch in job.batches]
            except BaseExceptionGroup as errors:  # the first ended the others
                raise errors.exceptions[0] from None
        parts = [answer.result() for answer in answers]
        return join(parts)

    async def _send(self, free: asyncio.Semaphore, advance: Callable[[A], A], batch: Batch[A]) -> A:
        async with free:
            return advance(await self._transport.send_async(batch))
