"""Stand-ins for the towers' handles, and a Router before them."""

import asyncio
from types import SimpleNamespace

import numpy as np
from ray.serve.exceptions import DeploymentUnavailableError

from deployments.config import AppConfig
from deployments.messages import ImageChunk, TowerRows
from deployments.model.errors import ImageError
from deployments.router import Router

WIDTH = 192  # of the shipped checkpoint


class Handle:
    """A tower's handle: a text's row counts up to its length, an image's to its size.

    An image of an odd size cannot be decoded. Nothing is answered while the gate is shut.
    """

    def __init__(self, name: str, called: asyncio.Semaphore | None = None) -> None:
        self.name = name
        self.called = called or asyncio.Semaphore(0)
        self.fingerprint = "one"
        self.fingerprints: list[str] = []  # of the next answers, before the lasting one
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.chunks: list[object] = []
        self.cancelled = 0
        self.embed = self
        self.ready = SimpleNamespace(remote=self.ask)
        self.logit_scale = SimpleNamespace(remote=lambda: Response(self, self.scale))
        self.asked = 0
        self.replicas = 1

    def remote(self, chunks):
        self.chunks += chunks
        self.called.release()
        return Response(self, lambda: tuple(map(self.rows, chunks)))

    def broadcast(self, method):
        """Ask every running replica; as in Ray Serve, without one it raises and starts none."""
        assert method == "ready"

        async def results():
            if not self.replicas:
                raise DeploymentUnavailableError(self.name)
            return [await self.ask()]

        return SimpleNamespace(results_async=results)

    def ask(self):
        self.asked += 1
        return Response(self, self.say)

    def say(self) -> str:
        return self.fingerprints.pop(0) if self.fingerprints else self.fingerprint

    def scale(self) -> tuple[str, float]:
        return self.say(), 20.0

    def rows(self, chunk) -> TowerRows:
        items = chunk.images if isinstance(chunk, ImageChunk) else chunk.texts()
        results = [row(len(item)) for item in items]
        if isinstance(chunk, ImageChunk):
            bad = ImageError("cannot be decoded")
            results = [bad if len(x) % 2 else y for x, y in zip(items, results, strict=True)]
        return TowerRows.of(results, WIDTH, 1.0, 2.0, f"{self.name}:a", self.say())


class Response:
    def __init__(self, handle, answer) -> None:
        self.handle, self.answer = handle, answer

    def __await__(self):
        yield from self.handle.gate.wait().__await__()
        if self.handle.error is not None:
            raise self.handle.error
        return self.answer()

    def cancel(self) -> None:
        self.handle.cancelled += 1


def row(size: int):
    return np.arange(1, WIDTH + 1, dtype=np.float32) * size


class Served:
    """A Router and its towers."""

    def __init__(self, **limits) -> None:
        self.called = asyncio.Semaphore(0)
        self.text, self.vision = Handle("text", self.called), Handle("vision", self.called)
        towers = {name: limits.pop(name) for name in ("text", "vision") if name in limits}
        images = {name: limits.pop(name) for name in ("allow_networks", "ports") if name in limits}
        config = AppConfig.model_validate({"router": limits, "images": images} | towers)
        self.router = Router(config, self.text, self.vision)

    async def start(self, *args, **options):
        """Begin a request and let it run until it has called a tower."""
        task = asyncio.create_task(self.router.embed(*args, **options))
        called = asyncio.create_task(self.called.acquire())
        await asyncio.wait([task, called], return_when=asyncio.FIRST_COMPLETED)
        if not called.done():
            called.cancel()
            raise AssertionError("no tower was called") from task.exception()
        return task

    async def outstanding(self):
        stats = await self.router.record_autoscaling_stats()
        return stats["text_tokens_outstanding"], stats["images_outstanding"]
