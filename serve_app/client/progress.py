"""A progress bar for long lists."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from serve_app.client.calls import A
from serve_app.client.inputs import Job

LONG_BATCHES = 8


@contextmanager
def progress(job: Job[A], show: bool | None) -> Iterator[Callable[[A], A]]:
    """Yield a function that passes the answer to a batch on and counts its items on a bar.

    `show` None shows the bar for long lists on a terminal.
    """
    if show is None:
        show = len(job.batches) >= LONG_BATCHES and sys.stderr.isatty()
    if not show:
        yield lambda answer: answer
        return
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("Embedding", total=sum(len(batch.inputs) for batch in job.batches))

        def advance(answer: A) -> A:
            bar.advance(task, len(answer))
            return answer

        yield advance
