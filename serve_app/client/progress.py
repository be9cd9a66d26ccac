"""A progress bar for long lists."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from deployments.model.output import Rows
from serve_app.client.inputs import Job

LONG_BATCHES = 8


@contextmanager
def progress(job: Job, show: bool | None) -> Iterator[Callable[[Rows], Rows]]:
    """Yield a function that passes rows on and counts them on a bar.

    `show` None shows the bar for long lists on a terminal.
    """
    if show is None:
        show = len(job.batches) >= LONG_BATCHES and sys.stderr.isatty()
    if not show:
        yield lambda rows: rows
        return
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("Embedding", total=sum(len(batch.inputs) for batch in job.batches))

        def advance(rows: Rows) -> Rows:
            bar.advance(task, len(rows))
            return rows

        yield advance
