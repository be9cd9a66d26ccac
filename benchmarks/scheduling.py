"""Does the batcher form full batches, spare queries the queue, and keep bulk's share?

    python -m benchmarks.scheduling [--json]

The device is simulated: it takes a fixed time for each batch and each token. Everything else is the
product's own batcher, on a real event loop.
"""

import asyncio
import time
from collections.abc import Sequence

from benchmarks.harness import report
from deployments.engine.batcher import Batcher
from deployments.messages import Lane

MAX_BATCH_TOKENS = 16384
TOKENS_PER_S = 400_000.0
BATCH_S = 0.002


class Device:
    """Takes the time that a batch costs, and remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    async def run(self, items: list[int]) -> list[int]:
        """Take the time of a batch; items are their own costs and results."""
        self.batches.append(items)
        await asyncio.sleep(BATCH_S + sum(items) / TOKENS_PER_S)
        return items


def batcher_on(device: Device) -> Batcher[int, int]:
    """Return the product's batcher at its default budget."""
    return Batcher(device.run, MAX_BATCH_TOKENS, 512)


async def batches_formed() -> dict[str, float]:
    """Bursts of 300-token texts, ten budgets each, arriving one by one on an idle device."""
    device = Device()
    batcher = batcher_on(device)
    per_batch = MAX_BATCH_TOKENS // 300
    costs = [300] * (10 * per_batch)
    bursts = 3
    for _ in range(bursts):
        calls = []
        for cost in costs:
            calls.append(asyncio.create_task(batcher.submit([cost], [cost])))
            await asyncio.sleep(0)
        await asyncio.gather(*calls)
    fewest = bursts * -(-len(costs) // per_batch)
    formed = len(device.batches)
    return {"batches": formed, "fewest": fewest, "ratio": formed / fewest}


async def query_behind_documents() -> dict[str, float]:
    """A 10-token query sent while 50 texts of 8192 tokens wait; also with nothing waiting."""
    device = Device()
    batcher = batcher_on(device)
    begin = time.perf_counter()
    await batcher.submit([10], [10])
    alone_s = time.perf_counter() - begin
    device.batches.clear()
    documents = [asyncio.create_task(batcher.submit([8192], [8192])) for _ in range(50)]
    await asyncio.sleep(0.001)
    running = len(device.batches)
    begin = time.perf_counter()
    await batcher.submit([10], [10])
    wait_s = time.perf_counter() - begin
    position = next(place for place, batch in enumerate(device.batches, 1) if 10 in batch)
    await asyncio.gather(*documents)
    full_batch_s = BATCH_S + MAX_BATCH_TOKENS / TOKENS_PER_S
    return {
        "alone_ms": 1e3 * alone_s,
        "behind_50_documents_ms": 1e3 * wait_s,
        "full_batch_ms": 1e3 * full_batch_s,
        "batches_until_answered": position - running + 1,
    }


async def bulk_share() -> dict[str, float]:
    """Both lanes always have work for 3 seconds: which share of the tokens is bulk's?"""
    device = Device()
    batcher = batcher_on(device)
    done: dict[Lane, int] = {"interactive": 0, "bulk": 0}
    end = time.monotonic() + 3

    async def keep_asking(lane: Lane, cost: int) -> None:
        while time.monotonic() < end:
            await batcher.submit([cost], [cost], lane)
            if time.monotonic() < end:  # after it one lane may be alone
                done[lane] += cost

    interactive = [keep_asking("interactive", 400) for _ in range(200)]
    bulk = [keep_asking("bulk", 2000) for _ in range(40)]
    await asyncio.gather(*interactive, *bulk)
    return {"bulk_share": done["bulk"] / sum(done.values()), "configured": 0.2}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all three and print them."""
    options = report.command(__doc__).parse_args(arguments)
    results = {
        "batches_formed": asyncio.run(batches_formed()),
        "query_behind_documents": asyncio.run(query_behind_documents()),
        "bulk_share": asyncio.run(bulk_share()),
    }
    report.write(options, results, report.show_values)


if __name__ == "__main__":
    main()
