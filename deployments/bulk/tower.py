"""One tower inside an actor of a bulk job: the service's device, batcher and finite guard."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from deployments.config import AppConfig
from deployments.engine.batcher import Batcher
from deployments.engine.device import Device
from deployments.engine.finite import FiniteGuard
from deployments.errors import TowerUnavailableError
from deployments.model.output import Row, Rows

if TYPE_CHECKING:
    from deployments.model import ClipModel

T = TypeVar("T")


class BulkTower(Generic[T]):
    """Embeds items of any number in batches within a budget.

    Args:
        config: the model and its budgets.
        name: the tower.
        forward: runs one batch on a model.
        max_cost: budget of a batch in tokens or images.
        max_items: most items of a batch.
    """

    def __init__(
        self,
        config: AppConfig,
        name: Literal["text", "vision"],
        forward: Callable[["ClipModel", Sequence[T]], Rows],
        max_cost: int,
        max_items: int,
    ) -> None:
        self._device = Device(config, name)
        self._forward = forward
        self._guard: FiniteGuard[T] = FiniteGuard(self._in_float32)
        self._batcher: Batcher[T, Row] = Batcher(self._run, max_cost, max_items)

    @property
    def model(self) -> "ClipModel":
        """The loaded model; decoding is safe from any thread, all else is the device thread's."""
        return self._device.model

    async def embed(self, items: Sequence[T], costs: Sequence[int]) -> list[Row | Exception]:
        """Return un-normalised float32 [width] for each item, or what is wrong with it.

        Raises:
            TowerUnavailableError: the device is lost.
        """
        results = (await self._batcher.submit(items, costs, "bulk")).results
        for result in results:
            if isinstance(result, TowerUnavailableError):
                raise result
        return results

    async def _run(self, items: list[T]) -> Sequence[Row | Exception]:
        return await self._device.run(self._checked, items)

    def _checked(self, items: list[T]) -> Sequence[Row | Exception]:
        return self._guard.check(items, self._forward(self._device.model, items))

    def _in_float32(self, item: T) -> Row:
        row: Row = self._forward(self._device.float32, [item])[0]
        return row
