"""Towers that answer at a given pace without computing: all else of the service is real.

What stands between the socket and the device can be measured with them on a machine without a GPU.
"""

import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any
from unittest import mock

import numpy as np
from ray.serve import Application

from benchmarks.harness import h100
from deployments.config import AppConfig
from deployments.engine import engine
from deployments.engine.device import SWITCH_INTERVAL_S, Device
from deployments.engine.self_check import SelfCheck
from deployments.messages import TextChunk, TowerRows
from deployments.model.architecture import Architecture
from deployments.model.errors import EmbeddingError
from deployments.model.output import Rows
from deployments.model.pictures.image import Pixels
from deployments.model.weights.source import TOKENIZER_FILES, find
from deployments.text_tower import TextTower
from deployments.vision_tower import VisionTower
from serve_app import app


@dataclass(frozen=True)
class Decoded:
    """Stands for decoded images; see `deployments.model.pictures.decode.Decoded`."""

    pixels: Pixels
    failures: dict[int, Exception]


@dataclass(frozen=True)
class Pending:
    """Rows that are there from a point in time on."""

    end_s: float
    values: Rows

    def rows(self) -> Rows:
        """Wait, and return float32 [n, width]."""
        time.sleep(max(0.0, self.end_s - time.monotonic()))
        return self.values


class PacedModel:
    """Stands for a ClipModel: batches take their time one after the other, rows are constant."""

    fingerprint = "paced"

    def __init__(self, config: AppConfig) -> None:
        folder = find(config.model.source, config.model.revision, TOKENIZER_FILES)
        self.width = Architecture.read(folder).width
        self.choices = {"implementation": "native", "device": "cuda"}
        self.timely = {
            "text": config.text.max_batch_tokens,
            "vision": config.vision.max_batch_images,
        }
        self._free_s = 0.0
        self._lock = Lock()

    def launch_tokens(self, texts: Sequence[Any]) -> Pending:
        """Begin a batch of texts."""
        tokens = sum(map(len, texts))
        if tokens > h100.LARGE_TOKENS:
            hold_interpreter(h100.LAUNCH_S)
        return self._begin(len(texts), tokens / h100.TEXT_TOKENS_PER_S)

    def launch_pixels(self, images: Sequence[Any]) -> Pending:
        """Begin a batch of images."""
        return self._begin(len(images), len(images) / h100.IMAGES_PER_S)

    def decode_images(self, images: Sequence[bytes], _max_pixels: int) -> Decoded:
        """Take images as decoded."""
        return Decoded(np.zeros((len(images), 1, 1, 3), np.uint8), {})

    def _begin(self, items: int, seconds: float) -> Pending:
        with self._lock:
            self._free_s = max(self._free_s, time.monotonic()) + max(seconds, h100.CALL_S)
            return Pending(self._free_s, np.full((items, self.width), 0.5, np.float32))


def hold_interpreter(seconds: float) -> None:
    """Compute for so long in this thread, as launches of kernels do."""
    end_s = time.thread_time() + seconds
    while time.thread_time() < end_s:
        pass


class PacedDevice(Device):
    """A device whose results are waited for in a thread of their own, as a GPU's are."""

    def __init__(self, _name: str) -> None:
        super().__init__("cpu")
        self.is_cpu = False
        self._collector = ThreadPoolExecutor(1, thread_name_prefix="collect")
        sys.setswitchinterval(SWITCH_INTERVAL_S)


@contextmanager
def paced_engine() -> Iterator[None]:
    """Let towers made in the block have a paced model on a paced device."""

    def start(config: AppConfig, _inputs: object) -> tuple[PacedModel, SelfCheck]:
        return PacedModel(config), SelfCheck(lambda: 1.0, 0)

    with mock.patch.multiple(engine, start=start, Device=PacedDevice):
        yield


class PacedTextTower(TextTower):
    """A TextTower at a given pace."""

    def __init__(self, config: AppConfig) -> None:
        with paced_engine():
            super().__init__(config)


class ReadyTextTower(PacedTextTower):
    """A TextTower whose answer is ready: what it takes of the processor is Ray's."""

    async def embed(self, chunks: Sequence[TextChunk]) -> tuple[TowerRows | EmbeddingError, ...]:
        """Answer as soon as the device would, with rows that were made before."""
        await asyncio.sleep(h100.CALL_S)
        return tuple(
            self._row if len(x.lengths) == 1 else self._rows(len(x.lengths)) for x in chunks
        )

    @cached_property
    def _row(self) -> TowerRows:
        return self._rows(1)

    def _rows(self, count: int) -> TowerRows:
        rows = np.full((count, self._engine.model.width), 0.5, np.float32)
        return TowerRows(rows, replica="text:ready", fingerprint=self._engine.fingerprint)


class PacedVisionTower(VisionTower):
    """A VisionTower at a given pace."""

    def __init__(self, config: AppConfig) -> None:
        with paced_engine():
            super().__init__(config)


@contextmanager
def towers(ready: bool = False) -> Iterator[None]:
    """Let a service that is started in the block have towers at a given pace.

    An application with an autoscaling policy is built by Serve, in a process of its own, by
    `build_app`.

    Args:
        ready: texts have answers that are ready, without an engine.
    """
    text = mock.patch("serve_app.app.TextTower", ReadyTextTower if ready else PacedTextTower)
    vision = mock.patch("serve_app.app.VisionTower", PacedVisionTower)
    builder = mock.patch("serve_app.launch.BUILDER", f"{__name__}:build_app")
    with text, vision, builder:
        yield


def build_app(config: AppConfig) -> Application:
    """Return the application with towers at a given pace."""
    with towers():
        return app.build_app(config)
