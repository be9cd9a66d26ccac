"""Has every row the fingerprint of the weights that made it while other weights are rolled out?

    python -m benchmarks.rollout [--changes 4] [--rate 12] [--json]

Runs two Routers, four replicas of the text tower (Serve replaces one after the other, so replicas
of both weights answer for a while), two of the vision tower, and a cache of rows. Other weights and
the first ones again are rolled out by turns, while callers ask; half of the requests demand one of
the two fingerprints. Each row is compared with those that both models give in this process; an
answer whose rows are not all of the weights that its fingerprint names is wrong. It ends with code
1 if an answer was wrong or a request failed.
"""

import asyncio
import base64
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from benchmarks.harness import report
from benchmarks.harness.mixes import text
from benchmarks.harness.outcomes import quantile
from benchmarks.harness.sampler import seconds_until
from benchmarks.harness.servers import service
from deployments.config import AppConfig
from deployments.model import ClipModel
from deployments.model.weights.source import DEMO, WEIGHTS
from serve_app.gallery import gallery_images

FIRST, SECOND = "first", "second"
TOWERS = "text", "vision"
NUM_TEXTS = 96
ROLLOUT_S = 300
BETWEEN_S = 6  # of load before each roll-out, and after the last
SAME = 1e-4  # the largest difference of a row from that of the model that made it
HEADER = "x-embedding-fingerprint"
SETTINGS: dict[str, Any] = {
    "text": {"num_replicas": 4, "num_cpus": 0.25},
    "vision": {"num_replicas": 2, "num_cpus": 0.25, "decode_threads": 2},
    # Chunks so small that most requests have several, which may go to replicas of either weights.
    "router": {"num_replicas": 2, "num_cpus": 0.25, "max_tokens_per_chunk": 128},
}

Rows = NDArray[np.float32]


class Items:
    """Texts and images to ask for, and their rows by both models, computed in this process."""

    def __init__(self, sources: dict[str, str]) -> None:
        chance = random.Random(3)
        self.texts = [text(chance, chance.randint(4, 40))["text"] for _ in range(NUM_TEXTS)]
        self.images = [image.path.read_bytes() for image in gallery_images()]
        self.rows: dict[str, dict[str, Rows]] = {}
        for name, source in sources.items():
            model = ClipModel.load(source)
            self.rows[name] = {
                "text": model.encode_text(self.texts),
                "vision": model.encode_image(self.images),
            }

    def draw(self, chance: random.Random) -> list[tuple[str, int]]:
        """Return the items of a request: tower and number."""
        texts = chance.sample(range(len(self.texts)), chance.choice((1, 4, 32)))
        images = chance.sample(range(len(self.images)), chance.choice((0, 0, 2)))
        return [("text", number) for number in texts] + [("vision", number) for number in images]

    def body(self, drawn: Sequence[tuple[str, int]]) -> bytes:
        """Return the request."""
        items = [
            {"text": self.texts[number]}
            if tower == "text"
            else {"image": base64.b64encode(self.images[number]).decode()}
            for tower, number in drawn
        ]
        return json.dumps({"input": items, "embedding_type": "base64"}).encode()

    def makers(self, drawn: Sequence[tuple[str, int]], content: bytes) -> set[tuple[str, str]]:
        """Return which weights made the rows of an answer: tower and `first`, `second`, `none`."""
        found = set()
        for (tower, number), entry in zip(drawn, json.loads(content)["data"], strict=True):
            row = np.frombuffer(base64.b64decode(entry["embedding"]), np.float32)
            same = [
                name
                for name, rows in self.rows.items()
                if np.abs(row - rows[tower][number]).max() < SAME
            ]
            found.add((tower, same[0] if len(same) == 1 else "none"))
        return found


class Callers:
    """Sends requests at a steady rate and compares what comes back.

    Attributes:
        named: which weights made the rows under each fingerprint, with the number of answers.
        told: which fingerprints there are, in the order in which they were heard, by tower.
        counts: what became of the requests.
    """

    def __init__(self, url: str, items: Items, per_s: float) -> None:
        self.named: Counter[tuple[str, str, str]] = Counter()
        self.told: dict[str, list[str]] = {tower: [] for tower in TOWERS}
        self.counts: Counter[str] = Counter()
        self.latencies_s: list[float] = []
        self._url = f"{url}/v1/embeddings"
        self._items = items
        self._per_s = per_s
        self._chance = random.Random(5)
        self._stop = threading.Event()

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Ask on a thread until the block ends, and then until all is answered."""
        thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    async def _run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=60)
        async with (
            aiohttp.ClientSession(timeout=timeout) as client,
            asyncio.TaskGroup() as tasks,
        ):
            while not self._stop.is_set():
                tasks.create_task(self._ask(client))
                await asyncio.sleep(self._chance.expovariate(self._per_s))

    async def _ask(self, client: aiohttp.ClientSession) -> None:
        """Ask once; half of the requests demand a fingerprint that was heard."""
        drawn = self._items.draw(self._chance)
        wanted = {
            tower: self._chance.choice(self.told[tower])
            for tower in {tower for tower, _ in drawn}
            if self.told[tower] and self._chance.random() < 0.5
        }
        headers = {"content-type": "application/json"}
        if wanted:
            headers[HEADER] = " ".join(f"{tower}:{digest}" for tower, digest in wanted.items())
        sent_s = time.monotonic()
        try:
            async with client.post(
                self._url, data=self._items.body(drawn), headers=headers
            ) as answer:
                content, status = await answer.read(), answer.status
        except (aiohttp.ClientError, TimeoutError) as error:
            self.counts[f"failed: {type(error).__name__}"] += 1
            return
        if status == 200:
            self.latencies_s.append(time.monotonic() - sent_s)
            self._compare(drawn, content, answer.headers[HEADER], wanted)
        elif status == 409 and wanted:
            self.counts["409: the fingerprint demanded is not served"] += 1
        else:
            self.counts[f"failed: {status} {content[:100].decode(errors='replace')}"] += 1

    def _compare(
        self,
        drawn: Sequence[tuple[str, int]],
        content: bytes,
        header: str,
        wanted: dict[str, str],
    ) -> None:
        """Note which weights made the rows under which fingerprint."""
        parts = [part.split(":") for part in header.split()]
        self.counts[f"answered, fingerprint {'demanded' if wanted else 'not demanded'}"] += 1
        for tower, digest in parts:
            if digest not in self.told[tower]:
                self.told[tower].append(digest)
            if wanted.get(tower, digest) != digest:
                self.counts["wrong: another fingerprint than demanded"] += 1
        makers = self._items.makers(drawn, content)
        if len(makers) > len({tower for tower, _ in makers}):
            self.counts["wrong: rows of two models in one answer"] += 1
        for tower, maker in makers:
            for digest in (digest for named, digest in parts if named == tower):
                self.named[tower, digest, maker] += 1

    def wrong(self) -> dict[str, int]:
        """Return what must not be: also a fingerprint with rows of two models, or of neither."""
        seen = Counter((tower, digest) for tower, digest, _ in self.named)
        mixed = sum(number > 1 for number in seen.values())
        unknown = sum(n for (_, _, maker), n in self.named.items() if maker == "none")
        found = {name: n for name, n in self.counts.items() if name.startswith(("wrong", "failed"))}
        found |= {
            "wrong: fingerprints of rows of two models": mixed,
            "wrong: unknown rows": unknown,
        }
        return {name: number for name, number in found.items() if number}


def second_checkpoint(folder: Path) -> None:
    """Write the shipped checkpoint with other weights."""
    for path in DEMO.iterdir():
        if path.is_file() and path.name != WEIGHTS:
            (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(DEMO / WEIGHTS)
    changed = {
        name: np.asarray(values * 1.02 + (0.002 if values.ndim == 1 else 0), values.dtype)
        for name, values in tensors.items()
    }
    save_file(changed, folder / WEIGHTS, metadata={"format": "pt"})


def roll_out(config: AppConfig) -> float:
    """Put a configuration in the place of the one that runs; returns the seconds it took.

    Raises:
        RuntimeError: it does not run in time.
    """
    from ray import serve

    from serve_app.launch import launch

    def runs() -> bool:
        application = serve.status().applications["embeddings"]
        states = [x.replica_states for x in application.deployments.values()]
        return application.status == "RUNNING" and all(list(x) == ["RUNNING"] for x in states)

    begin_s = time.monotonic()
    launch(config)
    if seconds_until(runs, ROLLOUT_S) is None:
        raise RuntimeError(f"not rolled out within {ROLLOUT_S} s")
    return round(time.monotonic() - begin_s, 1)


def config(source: str) -> AppConfig:
    """Return the service with a checkpoint."""
    model = {"source": source, "name": "jina-clip-demo"}
    return AppConfig.model_validate(SETTINGS | {"model": model})


def measure(changes: int, per_s: float) -> dict[str, Any]:
    """Start the service, roll out weights under load, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        second_checkpoint(Path(folder))
        sources = {FIRST: str(DEMO), SECOND: folder}
        items, took_s = Items(sources), []
        with service(config(sources[FIRST]), "haproxy", keeps_rows=True) as url:
            callers = Callers(url, items, per_s)
            with callers.calling():
                for change in range(changes):
                    time.sleep(BETWEEN_S)
                    name = SECOND if change % 2 == 0 else FIRST
                    took_s.append(roll_out(config(sources[name])))
                    report.progress(f"rolled out the {name} weights in {took_s[-1]} s")
                time.sleep(BETWEEN_S)
    return {
        "requests": dict(sorted(callers.counts.items())),
        "answers by tower, fingerprint and weights": {
            " ".join(key): number for key, number in sorted(callers.named.items())
        },
        "p50_s": quantile(0.5, callers.latencies_s),
        "p99_s": quantile(0.99, callers.latencies_s),
        "rollouts_took_s": took_s,
        "wrong": callers.wrong(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line; end with code 1 where an answer was wrong or missing."""
    parser = report.command(__doc__)
    parser.add_argument("--changes", type=int, default=4, help="roll-outs, one after the other")
    parser.add_argument("--rate", type=float, default=12, help="requests per second")
    options = parser.parse_args(arguments)
    results = measure(options.changes, options.rate)
    report.write(options, results, report.show_values)
    sys.exit(1 if results["wrong"] else 0)


if __name__ == "__main__":
    main()
