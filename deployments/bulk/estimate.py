"""How much a job is and how long it will take, from a sample of its rows."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import ray

from deployments.bulk.columns import ERROR, IMAGE_EMBEDDING, TEXT_EMBEDDING, TOKEN_IDS
from deployments.bulk.embedders import ImageEmbedder, TextEmbedder
from deployments.bulk.job import BulkJob
from deployments.bulk.options import EmbedOptions
from deployments.bulk.pipeline import tower_resources
from deployments.bulk.prepare import RowPreparer
from deployments.bulk.reading.plan import RowBlock
from deployments.bulk.reading.tables import BlockReader
from deployments.bulk.takeover import digest_column

Resources = dict[str, float]
Stage = Callable[[EmbedOptions], Callable[[pa.Table], pa.Table]]

SAMPLE_BLOCKS, SAMPLE_ROWS = 16, 256  # as many rows in all of these blocks
WARM_ROWS = 2


@dataclass
class Estimate:
    """What a job will be, as far as the sample tells.

    Attributes:
        rows: rows of the input, counted.
        blocks: blocks of the input, counted.
        taken_rows: rows that will be copied from an older output; what follows is of the others.
        texts: rows with a text that can be embedded.
        tokens: their tokens.
        images: rows with an image that can be embedded.
        errors: rows with an error.
        stage_s: seconds of each stage on the most replicas that the job may have.
        seconds: of the slowest stage, which the others overlap with; starting is not included.
    """

    rows: int
    blocks: int
    taken_rows: int
    texts: int = 0
    tokens: int = 0
    images: int = 0
    errors: int = 0
    stage_s: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def estimate(job: BulkJob) -> Estimate:
    """Embed a sample on one replica of each tower, and scale up; needs an initialised Ray."""
    options, old, reader = job.options, job.old_rows(), BlockReader(job.layout)
    blocks = spread(job.plan.blocks)
    seen = taken = 0
    parts = []
    for block in blocks:
        table = reader.read(block)
        seen += table.num_rows
        if old is not None:
            is_old = old.find(digest_column(table, options)) >= 0
            taken += int(is_old.sum())
            table = table.filter(~is_old)
        parts.append(table.slice(0, -(-SAMPLE_ROWS // len(blocks))))
    rows = job.plan.num_rows
    found = Estimate(rows, len(job.plan.blocks), round(rows * taken / seen))
    sample = pa.concat_tables(parts)
    if not sample.num_rows:
        return found
    scale: float = (rows - found.taken_rows) / sample.num_rows

    def run(stage: Stage, table: pa.Table, name: str, most: int, resources: Resources) -> pa.Table:
        """Run a stage in one replica and note what all rows take on the most that there may be."""
        # Ray starts workers with the threads that their CPUs allow.
        task = ray.remote(max_calls=1)(_run).options(**resources)
        table, stage_s = ray.get(task.remote(stage, options, table))
        found.stage_s[name] = round(stage_s * scale / most, 3)
        return table

    def scaled(name: str) -> int:
        count: int = table.num_rows - table[name].null_count
        return round(count * scale)

    table = run(RowPreparer, sample, "prepare", options.workers.max, {"num_cpus": 1})
    if options.text is not None:
        tokens = pc.sum(pc.list_value_length(table[TOKEN_IDS])).as_py() or 0
        found.tokens = round(tokens * scale)
        resources = tower_resources(options.app.text)
        table = run(TextEmbedder, table, "text", options.text_replicas.max, resources)
        found.texts = scaled(TEXT_EMBEDDING)
    if options.image is not None:
        resources = tower_resources(options.app.vision)
        table = run(ImageEmbedder, table, "vision", options.vision_replicas.max, resources)
        found.images = scaled(IMAGE_EMBEDDING)
    found.errors, found.seconds = scaled(ERROR), max(found.stage_s.values())
    return found


def spread(blocks: tuple[RowBlock, ...]) -> list[RowBlock]:
    """Return a few blocks, from the first to the last."""
    count = min(SAMPLE_BLOCKS, len(blocks))
    places = {round(i * (len(blocks) - 1) / max(1, count - 1)) for i in range(count)}
    return [blocks[place] for place in sorted(places)]


def _run(stage: Stage, options: EmbedOptions, table: pa.Table) -> tuple[pa.Table, float]:
    """Run a stage on rows once it is warm; returns them and the seconds."""
    run = stage(options)
    run(table.slice(0, WARM_ROWS))
    start_s = time.perf_counter()
    done = run(table)
    return done, time.perf_counter() - start_s
