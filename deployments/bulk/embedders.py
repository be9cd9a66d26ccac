"""Callable classes for `map_batches`: rows in, rows with vectors out."""

import asyncio
import math
import time
import weakref
from collections.abc import Mapping
from functools import cached_property

import numpy as np
import pyarrow as pa

from deployments.bulk.columns import (
    ENCODED,
    IMAGE_EMBEDDING,
    PIXELS,
    SCALES,
    TEXT_EMBEDDING,
    TOKEN_IDS,
    Batch,
    add_errors,
    add_seconds,
    as_table,
    put,
    token_rows,
    vector_columns,
)
from deployments.bulk.options import EmbedOptions
from deployments.bulk.prepare import RowPreparer
from deployments.engine.engine import TowerEngine
from deployments.engine.inputs import Image, ImageInputs, TextInputs
from deployments.errors import TowerUnavailableError
from deployments.messages import ImageChunk, Terms
from deployments.model.output import Row, finish

BATCHES_AHEAD = 2  # batches of images decoded while the tower works
TERMS = Terms("bulk", math.inf)


class TextEmbedder:
    """Adds `text_embedding`; takes rows as they come, or as `RowPreparer` left them."""

    def __init__(self, options: EmbedOptions) -> None:
        self._options = options
        self._loop = asyncio.Runner()
        weakref.finalize(self, self._loop.close)
        self._engine = TowerEngine(options.app, TextInputs(options.app), for_bulk=True)
        self._width = options.width(self._engine.model.architecture)

    def __call__(self, batch: Batch) -> pa.Table:
        """Return the rows with one more column; texts of like length share a batch."""
        table = as_table(batch)
        if TOKEN_IDS not in table.column_names:
            table = self._preparer(table)
        start_s = time.perf_counter()
        texts = {i: ids for i, ids in enumerate(token_rows(table[TOKEN_IDS])) if ids is not None}
        order = sorted(texts, key=lambda index: len(texts[index]))
        sorted_texts = [texts[index] for index in order]
        costs = [len(ids) for ids in sorted_texts]
        call = self._loop.run(self._engine.run(sorted_texts, costs, "bulk"))
        found = dict(zip(order, call.results, strict=True))
        table = with_vectors(table, found, self._options, self._width, TEXT_EMBEDDING)
        return add_seconds(table, "text", start_s)

    @cached_property
    def _preparer(self) -> RowPreparer:
        return RowPreparer(self._options.model_copy(update={"image": None}))


class ImageEmbedder:
    """Adds `image_embedding`; takes rows as they come, or as `RowPreparer` left them."""

    def __init__(self, options: EmbedOptions) -> None:
        self._options = options
        self._images = options.app.vision.max_batch_images
        self._loop = asyncio.Runner()
        weakref.finalize(self, self._loop.close)
        inputs = ImageInputs(options.app, options.images.max_pixels)
        self._engine = TowerEngine(options.app, inputs, for_bulk=True)
        architecture = self._engine.model.architecture
        self._width = options.width(architecture)
        self._size = architecture.vision.image_size

    def __call__(self, batch: Batch) -> pa.Table:
        """Return the rows with one more column."""
        table = as_table(batch)
        if PIXELS not in table.column_names and ENCODED not in table.column_names:
            table = self._preparer(table)
        start_s = time.perf_counter()
        if PIXELS in table.column_names:
            found = self._loop.run(self._embed_pixels(table[PIXELS]))
        else:
            found = self._loop.run(self._embed_encoded(table[ENCODED]))
        table = with_vectors(table, found, self._options, self._width, IMAGE_EMBEDDING)
        return add_seconds(table, "vision", start_s)

    @cached_property
    def _preparer(self) -> RowPreparer:
        return RowPreparer(self._options.model_copy(update={"text": None}))

    async def _embed_pixels(self, column: pa.ChunkedArray) -> dict[int, Row | Exception]:
        shape = (self._size, self._size, 3)
        images: dict[int, Image] = {
            index: np.frombuffer(value.as_buffer(), np.uint8).reshape(shape)
            for index, value in enumerate(column)
            if value.is_valid
        }
        call = await self._engine.run(list(images.values()), [1] * len(images), "bulk")
        return dict(zip(images, call.results, strict=True))

    async def _embed_encoded(self, column: pa.ChunkedArray) -> dict[int, Row | Exception]:
        """Decode the next batches on the tower's device while it works on the last."""
        images = {i: value for i, value in enumerate(column.to_pylist()) if value is not None}
        places = list(images)
        slots = asyncio.Semaphore(BATCHES_AHEAD)
        found: dict[int, Row | Exception] = {}

        async def embed(part: list[int]) -> None:
            async with slots:
                chunk = ImageChunk(tuple(images[index] for index in part), TERMS)
                answer = await self._engine.embed(chunk)
            found.update(zip(part, answer.rows, strict=True))
            found.update({part[i]: error for i, error in answer.failures.items()})

        starts = range(0, len(places), self._images)
        await asyncio.gather(*(embed(places[x : x + self._images]) for x in starts))
        return found


def with_vectors(
    table: pa.Table,
    found: Mapping[int, Row | Exception],
    options: EmbedOptions,
    width: int,
    name: str,
) -> pa.Table:
    """Truncate, normalise and store vectors by row; a failure becomes the row's error.

    Raises:
        TowerUnavailableError: the device is lost; another replica has to do the rows.
    """
    for result in found.values():
        if isinstance(result, TowerUnavailableError):  # it says nothing about the row
            raise result
    kind = name.removesuffix("_embedding")
    errors = {i: f"{kind}: {x}" for i, x in found.items() if isinstance(x, Exception)}
    rows = {i: x for i, x in found.items() if not isinstance(x, Exception)}
    if rows:
        finished = finish(np.stack(list(rows.values())), width)
        rows = dict(zip(rows, finished, strict=True))
    vectors, scales = vector_columns(rows, table.num_rows, width, options.precision)
    table = put(table, name, vectors)
    if scales is not None:
        table = put(table, SCALES[name], scales)
    return add_errors(table, errors)
