"""One tower of the model on one device, driven by its thread; what both tower deployments share."""

import asyncio
import gc
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeVar

import numpy as np

from deployments.config import AppConfig
from deployments.engine import canary
from deployments.engine.canary import Canary, Embed, Input
from deployments.engine.self_check import SelfCheck
from deployments.errors import TowerUnavailableError
from deployments.model.weights.source import DEMO

if TYPE_CHECKING:
    from deployments.model import ClipModel

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger("ray.serve")

PLAIN = {"dtype": "float32", "compile": "off", "attention": "sdpa"}
LONG_TOKENS = {"cpu": 256, "cuda": 1536}  # a GPU may have another kernel for long texts
TRIM_PERIOD_S = 10.0
# A CPU does larger batches no faster (benchmarks/README.md), and who comes next would wait longer.
CPU_BATCH = {"text": 2048, "vision": 8}
CPU_EXPRESS = {"text": 128, "vision": 2}  # run beside a batch, which keeps most of the CPU


class Device:
    """Loads one tower, warms it up, checks its rows, and runs functions on its thread.

    Torch is imported in the replica only, when a Device is made.

    Raises:
        RuntimeError: the tower does not give the rows that it has to (`deployments.engine.canary`).
    """

    def __init__(self, config: AppConfig, tower: Literal["text", "vision"]) -> None:
        self._config = config
        self._tower: Literal["text", "vision"] = tower
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._express_thread = ThreadPoolExecutor(1, thread_name_prefix="express")
        self._fault: str | None = None
        self._trimmed_s = time.monotonic()
        self.model, self.selfcheck = self._thread.submit(self._start).result()

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function on the device's thread.

        Raises:
            MemoryError: the device has too little memory for it.
            TowerUnavailableError: the device is lost; this replica will be replaced.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._call, function, args, kwargs
        )

    async def run_express(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function beside what `run` runs; see `run` for errors."""
        return await asyncio.get_running_loop().run_in_executor(
            self._express_thread, self._call, function, args, kwargs
        )

    @cached_property
    def float32(self) -> "ClipModel":
        """The same tower in float32, loaded when first needed; use it on the device's thread."""
        return self._load(**PLAIN)

    def batch_cost(self, limit: int) -> int:
        """Return the tokens or images to run at once: the limit, or less where that is as fast."""
        return min(limit, CPU_BATCH[self._tower]) if self._is_cpu else limit

    def express_cost(self) -> int:
        """Return the tokens or images that may run beside a batch; 0 where none may.

        Our towers keep nothing between batches; of third-party ones that is not known.
        """
        is_native = self.model.choices["implementation"] == "native"
        return CPU_EXPRESS[self._tower] if self._is_cpu and is_native else 0

    def check_health(self) -> None:
        """Raise RuntimeError once the device is lost or gives other rows than it should."""
        if self._fault is not None:
            raise RuntimeError(f"the device is lost: {self._fault}")
        self.selfcheck.poll(self._submit)

    def _start(self) -> "tuple[ClipModel, SelfCheck]":
        """Load the tower, find out what it has to answer, warm it up and hear its answers."""
        text, vision = self._config.text, self._config.vision
        model = self._load()
        embed, batches = self._embed(model), self._canary_inputs(model)
        plain = self._is_plain(model)
        wanted = None if plain else canary.run(self._embed(self._load(**PLAIN)), batches)
        gc.collect()  # the plain model, before warm-up measures what memory is free
        model.warm_up(text.max_batch_tokens, text.max_batch_sequences, vision.max_batch_images)
        rows = canary.run(embed, batches)
        watched = Canary(batches, rows if wanted is None else wanted)
        cosines = [canary.lowest_cosine(rows, watched.expected)]
        if self._config.model.source == "demo":
            cosines.append(canary.golden(DEMO, self._tower).cosine(embed))
        check = SelfCheck(partial(watched.cosine, embed), self._config.model.canary_period_s)
        check.accept(float(np.min(cosines)))  # NaN if one is
        return model, check

    @property
    def _is_cpu(self) -> bool:
        return self.model.choices["device"] == "cpu"

    def _is_plain(self, model: "ClipModel") -> bool:
        """Tell whether the tower runs as its float32 original does, so that there is no other."""
        choices = model.choices | {"attention": model.choices[f"{self._tower}_attention"]}
        return all(choices[name] == value for name, value in PLAIN.items())

    def _canary_inputs(self, model: "ClipModel") -> tuple[tuple[Input, ...], ...]:
        if self._tower == "vision":
            return canary.pictures(model.architecture.vision.image_size)
        device = model.choices["device"].partition(":")[0]
        long = min(LONG_TOKENS.get(device, 256), model.architecture.text.max_tokens)
        encode = partial(model.tokenizer.encode, max_length=long, truncate=True)
        return canary.texts(encode, long)

    def _embed(self, model: "ClipModel") -> Embed:
        return model.embed_tokens if self._tower == "text" else model.embed_pictures

    def _load(self, **changes: str) -> "ClipModel":
        """Load the tower as configured, but for some options."""
        from deployments.model import ClipModel

        model = self._config.model
        options = {"dtype": model.dtype, "attention": model.attention, "compile": model.compile}
        return ClipModel.load(
            model.source,
            model.revision,
            model.device,
            implementation=model.implementation,
            towers=(self._tower,),
            image_decode=model.image_decode,
            **(options | changes),
        )

    def _submit(self, function: Callable[[], float]) -> "Future[float]":
        return self._thread.submit(self._call, function, (), {})

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
        finally:
            self._trim()

    def _trim(self) -> None:
        """Give freed memory back to the system now and then; a GPU's is kept by torch."""
        from deployments.model.runtime import memory

        now_s = time.monotonic()
        if self._is_cpu and now_s > self._trimmed_s + TRIM_PERIOD_S:
            memory.trim()
            self._trimmed_s = now_s
