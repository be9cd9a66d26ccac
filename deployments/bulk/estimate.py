"""How much a job is and how long it will take, from a sample of its rows."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import ray

from deployments.bulk.columns import IMAGE_EMBEDDING, TEXT_EMBEDDING, TOKEN_IDS, drop_internal
from deployments.bulk.embedders import ImageEmbedder, TextEmbedder
from deployments.bulk.job import BulkJob
from deployments.bulk.options import EmbedOptions
from deployments.bulk.pipeline import tower_resources
from deployments.bulk.prepare import RowPreparer
from deployments.bulk.reading.plan import RowBlock
from deployments.bulk.reading.tables import BlockReader

SAMPLE_BLOCKS = 4
SAMPLE_ROWS = 64  # of each of them
WARM_ROWS = 2


@dataclass(frozen=True)
class Estimate:
    """What a job will be, as far as the sample tells.

    Attributes:
        rows: rows of the input, counted.
        blocks: blocks of the input, counted.
        texts: rows with a text that can be embedded.
        tokens: their tokens.
        images: rows with an image that can be embedded.
        errors: rows with an error.
        stage_s: seconds of each stage on the most replicas that the job may have.
        seconds: of the slowest stage, which the others overlap with; starting is not included.
    """

    rows: int
    blocks: int
    texts: int
    tokens: int
    images: int
    errors: int
    stage_s: dict[str, float]
    seconds: float


def estimate(job: BulkJob) -> Estimate:
    """Embed a sample on one replica of each tower, and scale up; needs an initialised Ray."""
    reader = BlockReader(job.layout)
    sample = pa.concat_tables(
        reader.read(block).slice(0, SAMPLE_ROWS) for block in spread(job.plan.blocks)
    )
    options, scale = job.options, job.plan.num_rows / sample.num_rows
    # Ray starts workers with the threads that their CPUs allow, so each stage is timed in one.
    prepared, prepare_s = _timed(RowPreparer, options, sample, {"num_cpus": 1})
    stage_s = {"prepare": prepare_s * scale / options.workers.max}
    texts = images = tokens = 0
    result = prepared
    if options.text is not None:
        resources = tower_resources(options.app.text)
        result, text_s = _timed(TextEmbedder, options, result, resources)
        stage_s["text"] = text_s * scale / options.text_replicas.max
        texts = _valid(result, TEXT_EMBEDDING)
        tokens = pc.sum(pc.list_value_length(prepared[TOKEN_IDS])).as_py() or 0
    if options.image is not None:
        resources = tower_resources(options.app.vision)
        result, image_s = _timed(ImageEmbedder, options, result, resources)
        stage_s["vision"] = image_s * scale / options.vision_replicas.max
        images = _valid(result, IMAGE_EMBEDDING)
    return Estimate(
        rows=job.plan.num_rows,
        blocks=len(job.plan.blocks),
        texts=round(texts * scale),
        tokens=round(tokens * scale),
        images=round(images * scale),
        errors=round(_valid(drop_internal(result), "error") * scale),
        stage_s={name: round(value, 3) for name, value in stage_s.items()},
        seconds=max(stage_s.values()),
    )


def spread(blocks: tuple[RowBlock, ...]) -> list[RowBlock]:
    """Return a few blocks, from the first to the last."""
    count = min(SAMPLE_BLOCKS, len(blocks))
    places = {round(i * (len(blocks) - 1) / max(1, count - 1)) for i in range(count)}
    return [blocks[place] for place in sorted(places)]


def _valid(table: pa.Table, name: str) -> int:
    return int(table.num_rows - table[name].null_count)


def _timed(
    stage: Callable[[EmbedOptions], Callable[[pa.Table], pa.Table]],
    options: EmbedOptions,
    table: pa.Table,
    resources: dict[str, float],
) -> tuple[pa.Table, float]:
    found: tuple[pa.Table, float] = ray.get(
        ray.remote(max_calls=1)(_run).options(**resources).remote(stage, options, table)
    )
    return found


def _run(
    stage: Callable[[EmbedOptions], Callable[[pa.Table], pa.Table]],
    options: EmbedOptions,
    table: pa.Table,
) -> tuple[pa.Table, float]:
    """Run a stage on rows once it is warm; returns them and the seconds."""
    run = stage(options)
    run(table.slice(0, WARM_ROWS))
    start_s = time.perf_counter()
    done = run(table)
    return done, time.perf_counter() - start_s
