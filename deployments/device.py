"""One tower of the model on one device, driven by one thread; what both tower deployments share."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeVar

from deployments.config import AppConfig
from deployments.work import TowerUnavailableError

if TYPE_CHECKING:
    from deployments.model import ClipModel

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger("ray.serve")


class Device:
    """Loads one tower, warms it up, and runs functions on its thread.

    Torch is imported in the replica only, when a Device is made.
    """

    def __init__(self, config: AppConfig, tower: Literal["text", "vision"]) -> None:
        self._config = config
        self._tower = tower
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._fault: str | None = None
        self.model = self._thread.submit(self._load).result()

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function on the device's thread.

        Raises:
            MemoryError: the device has too little memory for it.
            TowerUnavailableError: the device is lost; this replica will be replaced.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._call, function, args, kwargs
        )

    @cached_property
    def float32(self) -> "ClipModel":
        """The same tower in float32, loaded when first needed; use it on the device's thread."""
        return self._load(dtype="float32", warm=False)

    def check_health(self) -> None:
        """Raise RuntimeError once the device is lost."""
        if self._fault is not None:
            raise RuntimeError(f"the device is lost: {self._fault}")

    def _load(self, dtype: str | None = None, warm: bool = True) -> "ClipModel":
        from deployments.model import ClipModel

        model, text, vision = self._config.model, self._config.text, self._config.vision
        loaded = ClipModel.load(
            model.source,
            model.revision,
            model.device,
            dtype or model.dtype,
            model.attention,
            model.implementation,
            towers=(self._tower,),
            compile=model.compile,
            image_decode=model.image_decode,
        )
        if warm:
            loaded.warm_up(text.max_batch_tokens, text.max_batch_sequences, vision.max_batch_images)
        return loaded

    def _call(
        self, function: Callable[..., R], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> R:
        import torch

        try:
            return function(*args, **kwargs)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise MemoryError(str(error).splitlines()[0]) from error
        except torch.AcceleratorError as error:  # the CUDA context is broken from now on
            self._fault = str(error).splitlines()[0]
            logger.exception("the device is lost")
            raise TowerUnavailableError("the tower's device is lost; retry shortly") from error
