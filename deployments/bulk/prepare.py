"""The CPU stage: tokenises texts, fetches images and decodes them; loads neither tower."""

import asyncio
import os
import time
import weakref
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from urllib.parse import quote

import pyarrow as pa

from deployments.bulk.columns import (
    ENCODED,
    ERROR,
    PIXELS,
    TOKEN_IDS,
    Batch,
    add_errors,
    add_seconds,
    as_table,
    put,
    token_column,
)
from deployments.bulk.options import EmbedOptions
from deployments.bulk.reading.files import IMAGE_SUFFIXES, decode
from deployments.images.sources import SCHEME, ImageSources
from deployments.model.architecture import Architecture
from deployments.model.errors import EmbeddingError, InputError
from deployments.model.pictures.image import open_image, to_pixels
from deployments.model.tokenizer import TextTokenizer
from deployments.model.weights.source import TOKENIZER_FILES, find

DECODE_THREADS = 4

Image = bytes | memoryview


class RowPreparer:
    """Adds token ids and images to rows; a row without text and image gets an error.

    A callable class for `map_batches` in Ray Data's Arrow or numpy format.
    """

    def __init__(self, options: EmbedOptions) -> None:
        model = options.app.model
        folder = find(model.source, model.revision, TOKENIZER_FILES)
        self._options = options
        architecture = Architecture.read(folder)
        self._size = architecture.vision.image_size
        self._tokenizer = TextTokenizer(folder, architecture.text)
        self._decoders = ThreadPoolExecutor(DECODE_THREADS, "decode")
        self._loop = asyncio.Runner()
        self._sources = self._loop.run(open_sources(options))
        weakref.finalize(self, close_sources, self._loop, self._sources)

    def __call__(self, batch: Batch) -> pa.Table:
        """Return the rows with `_token_ids`, and `_pixels` or `_encoded`, and `error`."""
        start_s = time.perf_counter()
        table = add_errors(as_table(batch), {})
        had_error = table[ERROR].is_valid().to_pylist()
        if self._options.text is not None:
            table = self._tokenise(table, self._options.text)
        if self._options.image is not None:
            table = self._read(table, self._options.image)
        return add_seconds(self._mark_empty(table, had_error), "prepare", start_s)

    def _tokenise(self, table: pa.Table, column: str) -> pa.Table:
        values = dict(enumerate(table[column].to_pylist()))
        values = {i: decode(x) if isinstance(x, bytes) else x for i, x in values.items()}
        texts = {index: value for index, value in values.items() if isinstance(value, str)}
        errors = {
            index: f"text: the value is no string but {type(value).__name__}"
            for index, value in values.items()
            if value is not None and not isinstance(value, str)
        }
        options = self._options
        encoded = self._tokenizer.encode_each(
            list(texts.values()), options.task, None, options.truncate
        )
        ids = dict(zip(texts, encoded, strict=True))
        errors |= {index: f"text: {x}" for index, x in ids.items() if isinstance(x, InputError)}
        rows = [None if isinstance(x := ids.get(i), InputError) else x for i in values]
        return add_errors(put(table, TOKEN_IDS, token_column(rows)), errors)

    def _read(self, table: pa.Table, column: str) -> pa.Table:
        sources = {i: x for i, x in enumerate(table[column].to_pylist()) if x is not None}
        found = dict(zip(sources, self._loop.run(self._images(sources.values())), strict=True))
        errors = {i: f"image: {x}" for i, x in found.items() if isinstance(x, EmbeddingError)}
        good = [None if i in errors else found.get(i) for i in range(table.num_rows)]
        name = PIXELS if self._options.decodes_on_cpu else ENCODED
        return add_errors(put(table, name, pa.array(good, pa.large_binary())), errors)

    async def _images(self, sources: Iterable[object]) -> list[Image | EmbeddingError]:
        return await asyncio.gather(*map(self._image, sources))

    async def _image(self, source: object) -> Image | EmbeddingError:
        try:
            source = source_of(source)
            if not isinstance(source, (str, bytes)):
                raise InputError(
                    f"the value is neither string nor bytes but {type(source).__name__}"
                )
            data = await self._sources.read(locate(source, self._options.folder))
            return await asyncio.get_running_loop().run_in_executor(
                self._decoders, self._decode, data
            )
        except EmbeddingError as error:
            return error

    def _decode(self, data: bytes) -> Image:
        """Return pixels as bytes, or the encoded image once its header is within the limits."""
        max_pixels = self._options.images.max_pixels
        image = open_image(data, max_pixels)
        if not self._options.decodes_on_cpu:
            return data
        draft = self._options.app.model.image_decode == "draft"
        return to_pixels(
            image, self._size, max_pixels, draft, self._options.images.seeing
        ).tobytes()

    def _mark_empty(self, table: pa.Table, had_error: list[bool]) -> pa.Table:
        names = [name for name in (self._options.text, self._options.image) if name is not None]
        columns = [table[name].is_null().to_pylist() for name in names]
        empty = [all(values) for values in zip(*columns, strict=True)]
        message = f"the row is empty: {' and '.join(names)} null"
        errors = {i: message for i, x in enumerate(empty) if x and not had_error[i]}
        return add_errors(table, errors)


async def open_sources(options: EmbedOptions) -> ImageSources:
    """Make the image sources on the event loop that will use them."""
    return ImageSources(options.images)


def close_sources(loop: asyncio.Runner, sources: ImageSources) -> None:
    """Close connections, then the loop."""
    loop.run(sources.close())
    loop.close()


def source_of(value: object) -> object:
    """Return the bytes or the place of an image, also of one as data sets on the hub have it."""
    if isinstance(value, dict):
        return value.get("path") if value.get("bytes") is None else value["bytes"]
    return value


def locate(source: str | bytes, folder: str) -> str | bytes:
    """Give a path of an image its folder, as a URL; leave URLs, base64 and bytes alone."""
    if isinstance(source, bytes):
        return source
    suffix = PurePosixPath(source).suffix.lower()
    if suffix not in IMAGE_SUFFIXES or SCHEME.match(source):
        return source
    if folder.startswith("s3://") and not source.startswith("/"):
        return f"{folder.rstrip('/')}/{source}"
    return f"file://{quote(os.path.abspath(os.path.join(folder, source)))}"
