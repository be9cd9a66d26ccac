"""The batcher and a device in trouble: too little memory, or lost."""

from collections.abc import Awaitable

from deployments.engine.batcher import GROW_AFTER, Batcher
from deployments.engine.call import Call
from deployments.errors import RequestTooLargeError, TowerUnavailableError


async def results(call: Awaitable[Call[int]]) -> list[int | Exception]:
    """Wait for a call and return its results."""
    return (await call).results


async def test_out_of_memory_halves_the_budget_down_to_what_was_proven():
    """A batch that does not fit is run in halves, and later ones are smaller from the start."""
    sizes = []

    async def run(items: list[int]) -> list[int]:
        sizes.append(len(items))
        if len(items) > 3:
            raise MemoryError
        return items

    batcher: Batcher[int, int] = Batcher(run, 8, 100)
    assert await results(batcher.submit(list(range(16)), [1] * 16)) == list(range(16))
    assert batcher.memory_halvings == 2
    assert batcher.queue.max_cost == 2
    assert sizes[:4] == [8, 4, 2, 2]
    assert max(sizes[7:]) <= 2


async def test_a_short_lack_of_memory_does_not_end_a_replicas_use():
    """A lone small item is tried once more, and the budget stays at half of what has run."""
    failures = 0

    async def run(items: list[int]) -> list[int]:
        nonlocal failures
        if failures:
            failures -= 1
            raise MemoryError
        return items

    batcher: Batcher[int, int] = Batcher(run, 1000, 100)
    await batcher.submit([0] * 100, [10] * 100)
    failures = 1
    assert await results(batcher.submit([7], [10])) == [7]
    assert batcher.queue.max_cost == 500
    for _ in range(GROW_AFTER):
        await batcher.submit([0] * 50, [10] * 50)
    assert batcher.queue.max_cost == 1000


async def test_an_item_that_fits_nowhere_is_refused_with_the_limit():
    """A single item out of memory, twice, gets an error that says what does fit."""
    runs = []

    async def run(items: list[int]) -> list[int]:
        runs.append(items)
        raise MemoryError

    batcher: Batcher[int, int] = Batcher(run, 1000, 10)
    (result,) = await results(batcher.submit([1], [1000]))
    assert isinstance(result, RequestTooLargeError)
    assert "500" in str(result)
    assert runs == [[1], [1]]


async def test_a_lost_device_ends_a_batch_at_once():
    """Its halves would fail the same way: one run, one error for each item."""
    runs = []

    async def run(items: list[int]) -> list[int]:
        runs.append(len(items))
        raise TowerUnavailableError("gone")

    batcher: Batcher[int, int] = Batcher(run, 100, 100)
    found = await results(batcher.submit(list(range(8)), [1] * 8))
    assert runs == [8]
    assert all(isinstance(error, TowerUnavailableError) for error in found)
