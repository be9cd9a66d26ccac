"""A bulk job in a process of its own that notes each block a tower begins; for tests that kill."""

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import ray

from deployments.bulk import pipeline, reembed
from deployments.bulk.columns import TOKEN_IDS, Batch, as_table
from deployments.bulk.embedders import TextEmbedder
from deployments.bulk.job import prepare
from deployments.bulk.options import EmbedOptions
from deployments.bulk.reading.tables import BLOCK

BLOCK_ROWS = 4
BLOCKS_AHEAD = 1  # beyond the one that the tower works on
PACE_S = 0.3  # per block, so that there is time to kill in


class TracedEmbedder(TextEmbedder):
    """Writes the number of each block, its own process and how many texts, before it embeds."""

    trace = Path()

    def __call__(self, batch: Batch) -> pa.Table:
        """Embed one block."""
        table = as_table(batch)
        texts = table.num_rows - table[TOKEN_IDS].null_count
        with self.trace.open("a") as file:
            file.write(json.dumps([table[BLOCK][0].as_py(), os.getpid(), texts]) + "\n")
        time.sleep(PACE_S)
        return super().__call__(batch)


def main(source: str, output: str, trace: str, options: str, replaced: str | None = None) -> None:
    """Run or resume the job; prints the rows it did, or how the output differs from `replaced`."""
    TracedEmbedder.trace = Path(trace)
    pipeline.TextEmbedder = TracedEmbedder
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    job = prepare(
        source,
        output,
        EmbedOptions.model_validate_json(options),
        key="id",
        block_rows=BLOCK_ROWS,
        blocks_ahead=BLOCKS_AHEAD,
        replaced=replaced,
    )
    if replaced is None:
        print(json.dumps(job.run(resume=True).rows))
        return
    reembed.check(replaced, output, job.identity, job.key)
    job.run(resume=True)
    print(json.dumps(asdict(reembed.finish(replaced, output, job.key))))


if __name__ == "__main__":
    main(*sys.argv[1:])
