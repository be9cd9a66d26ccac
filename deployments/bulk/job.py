"""A bulk job: input, stages and output put together, run to its end, and resumed."""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.actor import ActorProxy
from ray.data import ActorPoolStrategy, DataContext, Dataset

from deployments.bulk.columns import DIGEST
from deployments.bulk.identity import Identity
from deployments.bulk.options import EmbedOptions
from deployments.bulk.output import BlockWriter, Output, OutputFolder
from deployments.bulk.pipeline import LIGHT_CPUS, pool, towers
from deployments.bulk.prepare import RowPreparer
from deployments.bulk.progress import JobProgress
from deployments.bulk.reading.blocks import cut_input
from deployments.bulk.reading.files import S3
from deployments.bulk.reading.finding import folder_of
from deployments.bulk.reading.plan import Plan, RowBlock
from deployments.bulk.reading.tables import BlockReader, Layout
from deployments.bulk.sinks.choose import open_output
from deployments.bulk.takeover import OldRows, digest_column
from deployments.bulk.window import Window
from deployments.model.errors import EmbeddingError

# Ray Data (2.60) looks at finished tasks every 0.1 s, so that a block takes about a second through
# its stages however small it is; as much has to be under way as hides that. A GPU does 512 short
# texts in 50 ms: an H100 was idle half of the time with the blocks of a CPU (benchmarks/README.md).
BLOCK_ROWS, BLOCK_ROWS_OF_TEXTS_ON_GPU = 512, 4096
AHEAD_PER_REPLICA, AHEAD_PER_GPU = 2, 8


class TooManyErrorsError(EmbeddingError):
    """More rows failed than the job was allowed."""


@dataclass(frozen=True)
class BulkJob:
    """What to read, how to embed it, and where to.

    Attributes:
        plan: the blocks of the input.
        layout: the columns that are read and kept.
        options: how rows become vectors.
        output: folder, s3:// prefix, or URL of a database.
        max_errors: rows with errors after which the job stops; None for never.
        blocks_ahead: blocks under way beyond one for each replica of the towers; None is two for
            each replica, eight where texts alone go to GPUs, and one for each worker of the CPU
            stage.
        key: the kept column that names a row; a database needs one.
        replaced: output of an earlier job; what it has of this job's vectors is copied.
        stats: what Ray Data says about its stages, after a run.
    """

    plan: Plan
    layout: Layout
    options: EmbedOptions
    output: str
    max_errors: int | None = None
    blocks_ahead: int | None = None
    key: str | None = None
    replaced: str | None = None
    stats: list[str] = field(default_factory=list)

    @property
    def max_blocks_under_way(self) -> int:
        """Most blocks that are read but not written: what a kill can cost."""
        replicas, ahead = self.options.max_replicas, self.blocks_ahead
        if ahead is None:
            each = AHEAD_PER_GPU if self.options.has_texts_on_gpu else AHEAD_PER_REPLICA
            ahead = each * replicas + self.options.workers.max
        return replicas + ahead

    @cached_property
    def identity(self) -> Identity:
        """What the vectors of this job are; reads the checkpoint's files."""
        return Identity.of(self.options, self.layout, self.plan)

    def old_rows(self) -> OldRows | None:
        """Look at the output that is replaced, if there is one."""
        if self.replaced is None:
            return None
        return OldRows.of(OutputFolder(self.replaced).block_urls(), self.identity)

    def run(
        self, resume: bool = False, show: Callable[[JobProgress], None] = lambda _: None
    ) -> JobProgress:
        """Run on the Ray that is initialised; calls `show` after each block.

        Raises:
            OptionError: the output holds a job and `resume` is false, or holds another job.
            TooManyErrorsError: more rows failed than `max_errors`; finished blocks stay.
        """
        output, plan = open_output(self.output, self.layout, self.options, self.key), self.plan
        finished = output.begin(self.identity, resume)
        todo = [block for block in plan.blocks if block.number not in finished]
        rows, errors = plan.num_rows - sum(x.num_rows for x in todo), sum(finished.values())
        blocks = len(plan.blocks), len(finished)
        progress = JobProgress(output.shown, plan.num_rows, *blocks, rows, errors, plan.lost)
        self._check(progress)
        if todo:
            with settings():
                for figures in self._figures(todo, output):
                    progress.add(figures)
                    show(progress)
                    self._check(progress)
        progress.missing_rows = output.missing(plan.num_rows, self.identity)
        return progress

    def _figures(self, todo: list[RowBlock], output: Output) -> Iterator[dict[str, Any]]:
        """Run the pipeline; yields the figures of each block once it is written."""
        window = ray.remote(Window).options(num_cpus=0).remote(self.max_blocks_under_way)
        dataset = self._dataset(todo, window, output)
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            assert isinstance(table, pa.Table)  # the format that was asked for
            for figures in table.to_pylist():
                window.leave.remote(figures["block"])
                yield figures
        self.stats.append(dataset.stats())

    def _dataset(
        self, todo: list[RowBlock], window: "ActorProxy[Window]", output: Output
    ) -> Dataset:
        rows = [{"block": pickle.dumps(block)} for block in todo]
        blocks = ray.data.from_items(rows, override_num_blocks=len(rows))
        options, old = self.options, self.old_rows()
        needs_digests = old is not None or isinstance(output, OutputFolder)  # which keeps them
        loader = self.layout, options, window, needs_digests, old
        prepared = pool(blocks, Loader, loader, options, options.workers, {"num_cpus": 1})
        sizes = {block.number: block.num_rows for block in todo}
        # An actor: a task's process may end between two blocks, and one takes seconds to start.
        return towers(prepared, options).map_batches(
            BlockWriter,
            fn_constructor_args=(output, self.identity, self.layout.kept, sizes, old),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=1, max_size=options.max_replicas),
            num_cpus=LIGHT_CPUS,
        )

    def _check(self, progress: JobProgress) -> None:
        if self.max_errors is not None and progress.total_errors > self.max_errors:
            raise TooManyErrorsError(
                f"{progress.total_errors:,} rows have errors, the limit is {self.max_errors:,}; "
                f"see the column error in {progress.output}"
            )


class Loader:
    """The CPU stage: reads a block once the window has a place for it, and prepares its rows.

    Args:
        layout: the columns that are read.
        options: how rows become vectors.
        window: lets blocks in.
        needs_digests: whether anybody looks at digests of what rows embed.
        old: rows that need no preparing, since an older output has their vectors.
    """

    def __init__(
        self,
        layout: Layout,
        options: EmbedOptions,
        window: "ActorProxy[Window]",
        needs_digests: bool,
        old: OldRows | None,
    ) -> None:
        self._options, self._window, self._old = options, window, old
        self._needs_digests = needs_digests
        self._reader, self._preparer = BlockReader(layout), RowPreparer(options)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Yield the prepared rows of each block, in the order they came in."""
        for data in batch["block"].to_pylist():
            block: RowBlock = pickle.loads(data)
            ray.get(self._window.enter.remote(block.number))
            table = self._reader.read(block)
            if self._needs_digests:
                table = table.append_column(DIGEST, digest_column(table, self._options))
            if self._old is None or not (is_old := self._old.find(table[DIGEST]) >= 0).any():
                yield self._preparer(table)
                continue
            parts = [self._preparer(table.filter(~is_old)), table.filter(is_old)]
            order = np.argsort(np.argsort(is_old, kind="stable"))
            yield pa.concat_tables(parts, promote_options="default").take(order)


@contextmanager
def settings() -> Iterator[None]:
    """Let Ray Data keep a block whole, however large, and leave the terminal to us."""
    context = DataContext.get_current().copy()
    context.target_max_block_size = None
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.issue_detectors_config.detectors = []
    with DataContext.current(context):
        yield


def default_rows(options: EmbedOptions) -> int:
    """Return the rows of a block where nobody says."""
    return BLOCK_ROWS_OF_TEXTS_ON_GPU if options.has_texts_on_gpu else BLOCK_ROWS


def prepare(
    source: str,
    output: str,
    options: EmbedOptions,
    kept: tuple[str, ...] = (),
    block_rows: int | None = None,
    max_errors: int | None = None,
    blocks_ahead: int | None = None,
    ignored: tuple[str, ...] = (),
    key: str | None = None,
    replaced: str | None = None,
) -> BulkJob:
    """Look at the input and settle what there is to do; no row is embedded yet.

    A large input is looked at in tasks of the Ray that is initialised, if there is one.

    Where the options name no column, `text` and `image` of the input are taken. Images may come
    from the bucket of the input. Without `block_rows` a block has 512 rows, or 4,096 where texts
    alone go to GPUs.

    Raises:
        OptionError: the input or a column of it is not there.
        CheckpointError: there is no such model.
    """
    kept = (*([] if key is None else [key]), *kept)
    rows = block_rows or default_rows(options)
    plan = cut_input(source, rows, ignored)
    layout = Layout.choose(plan, options.text, options.image, kept)
    images = options.images
    if source.startswith(S3):
        bucket = source.removeprefix(S3).partition("/")[0]
        images = images.model_copy(update={"s3_buckets": (*images.s3_buckets, bucket)})
    update = {"text": layout.text, "image": layout.image, "folder": folder_of(source)}
    settled = options.model_copy(update=update | {"images": images})
    if block_rows is None and default_rows(settled) != rows:  # it has images that nobody named
        plan = cut_input(source, default_rows(settled), ignored)
    settled.width(settled.architecture())
    open_output(output, layout, settled, key)  # refuses what cannot be, before anything runs
    return BulkJob(plan, layout, settled, output, max_errors, blocks_ahead, key, replaced)
