"""A bulk job in a process of its own that notes each block a tower begins; for tests that kill."""

import json
import os
import sys
import time
from pathlib import Path

import pyarrow as pa
import ray

from deployments.bulk import pipeline
from deployments.bulk.columns import Batch, as_table
from deployments.bulk.embedders import TextEmbedder
from deployments.bulk.job import prepare
from deployments.bulk.options import EmbedOptions
from deployments.bulk.reading.tables import BLOCK

BLOCK_ROWS = 4
BLOCKS_AHEAD = 1  # beyond the one that the tower works on
PACE_S = 0.3  # per block, so that there is time to kill in


class TracedEmbedder(TextEmbedder):
    """Writes the number of each block, and its own process, before it embeds."""

    trace = Path()

    def __call__(self, batch: Batch) -> pa.Table:
        """Embed one block."""
        number = as_table(batch)[BLOCK][0].as_py()
        with self.trace.open("a") as file:
            file.write(json.dumps([number, os.getpid()]) + "\n")
        time.sleep(PACE_S)
        return super().__call__(batch)


def main(source: str, output: str, trace: str, options: str) -> None:
    """Run or resume the job."""
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
    )
    print(json.dumps(job.run(resume=True).rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
