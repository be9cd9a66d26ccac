"""Does every part of the GPU path work on this card, and how fast is each?

    python -m benchmarks.first_light [--size full|demo] [--parts text vision ...] [--json]

A few minutes, on a GPU. Each part runs alone, prints its findings as it ends, and may fail alone.
They come in order of value: a run that is cut short has said the most important things.
benchmarks/README.md has what to expect.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.harness import machine, report, workloads
from benchmarks.harness.random_checkpoint import checkpoint
from deployments.model import ClipModel
from deployments.model.clip import TowerName
from deployments.model.output import Rows
from deployments.model.pictures.decode import Decoder
from deployments.model.pictures.image import Pixels
from deployments.model.runtime.runners import Pending
from deployments.model.tokenizer import TokenIds
from deployments.model.towers import kernels
from deployments.model.towers.attention import Segments
from deployments.model.towers.text import mean_pool

GPU = torch.device("cuda")
ROUNDS = 7
HEADS, WIDTH = 16, 64
BATCH_TOKENS = 16384
Found = dict[str, Any]


def text(source: str) -> Found:
    """The text tower: agreement with float32, rates, what a new shape costs."""
    from torch._dynamo.utils import counters

    start_s = time.perf_counter()
    model = ClipModel.load(source, device="cuda", dtype="auto", towers=("text",))
    load_s = time.perf_counter() - start_s
    report = model.warm_up()
    compiled = dict(counters["stats"])
    some = _texts(model, [2, 5, 16, 33, 100, 129, 300, 700, 1025, 1536, 3000])
    exact = _plain(source, "text").embed_tokens(some)
    alone = np.concatenate([model.embed_tokens([ids]) for ids in some])
    works = {
        "1 x 16": _texts(model, [16]),
        "512 x 32": _texts(model, [32] * 512),
        "64 x 256": _texts(model, [256] * 64),
        "130 mixed": _texts(model, _mixed(130)),
        "1 x 1500 + 300 x 40": _texts(model, [1500] + [40] * 300),
        "2 x 8192": _texts(model, [8192] * 2),
    }
    return {
        "choices": model.choices,
        "load_s": load_s,
        "warm_up": str(report),
        "lowest_cosine_alone": _lowest_cosine(alone, exact),
        "lowest_cosine_together": _lowest_cosine(model.embed_tokens(some), exact),
        "works": {name: _text_rate(model, batch) for name, batch in works.items()},
        "first_runs_of_mixed_batches_ms": [
            _first_ms(partial(model.embed_tokens, _texts(model, _mixed(130, seed))))
            for seed in range(50, 60)
        ],
        "compilations_after_warm_up": {
            name: count - compiled.get(name, 0)
            for name, count in counters["stats"].items()
            if count != compiled.get(name, 0)
        },
        "beside_a_busy_thread_ms": _beside_a_busy_thread(
            {name: partial(model.embed_tokens, works[name]) for name in list(works)[:2]}
        ),
    }


def vision(source: str) -> Found:
    """The vision tower: agreement with float32, rates, what a new number of images costs."""
    model = ClipModel.load(source, device="cuda", dtype="auto", towers=("vision",))
    report = model.warm_up()
    pixels = workloads.pixels(model.architecture.vision, 32)
    exact = _plain(source, "vision").embed_pixels(pixels[:8])
    rates = {}
    for count in (1, 2, 3, 5, 7, 8, 11, 16, 32):
        run = partial(model.embed_pixels, pixels[:count])
        first_ms, ms = _first_ms(run), _wall_ms(run)
        launched = _overlapped(partial(model.launch_pixels, pixels[:count]))
        rates[count] = {
            "first_ms": first_ms,
            "ms": ms,
            "images_per_s": 1e3 * count / ms,
            "images_per_s_two_in_flight": 1e3 * count / launched,
        }
    return {
        "choices": model.choices,
        "warm_up": str(report),
        "lowest_cosine": {
            n: _lowest_cosine(model.embed_pixels(pixels[:n]), exact[:n]) for n in (1, 3, 8)
        },
        "works": rates,
    }


def jpegs(_: str) -> Found:
    """JPEGs on the GPU: the same pixels from eight threads as from one, and near Pillow's."""
    decoder, files = Decoder(512, GPU, "gpu"), workloads.jpegs(4000, 3000, 8)
    first, again = (_host(decoder.decode(files).pixels) for _ in range(2))
    single = np.concatenate([_host(decoder.decode([file]).pixels) for file in files])
    exact = _host(Decoder(512, torch.device("cpu")).decode(files).pixels)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: _host(decoder.decode(files).pixels), range(48)))
    wrong = sum(int((a[i] != first[i]).any()) for a in answers for i in range(len(files)))
    return {
        "differ_between_threads": f"{wrong} of {len(answers) * len(files)}",
        "differ_when_repeated": int((first != again).sum()),
        "largest_gap_to_one_by_one": int(np.abs(first.astype(int) - single).max()),
        "mean_gap_to_pillow": float(np.abs(first.astype(int) - exact).mean()),
        "images_per_s": {
            kind: 1e3 * 8 / _wall_ms(partial(decoder.decode, some))
            for kind, some in workloads.kinds_of_jpegs(8).items()
        },
    }


@torch.inference_mode()
def crossing(_: str) -> Found:
    """Milliseconds of the packed kernels by the length of equal texts, 16,384 tokens in all."""
    found: Found = {}
    for length in (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192):
        count = BATCH_TOKENS // length
        shape = (BATCH_TOKENS, HEADS, WIDTH)
        q = torch.randn(shape, device=GPU, dtype=torch.bfloat16)
        bounds = torch.tensor([0, *[length] * count], device=GPU).cumsum(0).int()
        found[str(length)] = {
            name: _device_ms(partial(kernels.PACKED[name], q, q, q, bounds, length))
            for name in ("varlen", "flash4")
        }
    return found


@torch.inference_mode()
def pooling(_: str) -> Found:
    """Milliseconds of mean pooling."""
    found: Found = {}
    for lengths in ([16], [512], [2048], [8192], [8192] * 2, [32] * 512, [1500, *[40] * 300]):
        x = torch.randn(sum(lengths), HEADS * WIDTH, device=GPU, dtype=torch.bfloat16)
        bounds = torch.tensor([0, *lengths], device=GPU).cumsum(0).int()
        where = Segments(bounds, max(lengths), max(lengths))
        found[f"{len(lengths)} texts up to {max(lengths)}"] = _device_ms(
            partial(mean_pool, x, where)
        )
    return found


PARTS: dict[str, Callable[[str], Found]] = {
    part.__name__: part for part in (text, vision, jpegs, crossing, pooling)
}


def _plain(source: str, tower: TowerName) -> ClipModel:
    return ClipModel.load(
        source,
        device="cuda",
        compile="off",
        attention="sdpa",
        towers=(tower,),
        image_decode="exact",
    )


def _texts(model: ClipModel, lengths: Sequence[int]) -> list[TokenIds]:
    random = np.random.default_rng(0)
    vocabulary = model.architecture.text.vocab_size
    return [random.integers(4, vocabulary - 1, length).astype(np.int32) for length in lengths]


def _mixed(count: int, seed: int = 5) -> list[int]:
    lengths = np.random.default_rng(seed).lognormal(np.log(67), 1.1, count)
    return [int(length) for length in lengths.clip(4, 3448)]


def _text_rate(model: ClipModel, texts: list[TokenIds]) -> Found:
    first_ms = _first_ms(lambda: model.embed_tokens(texts))
    ms = _wall_ms(lambda: model.embed_tokens(texts))
    overlapped_ms = _overlapped(lambda: model.launch_tokens(texts))
    tokens = sum(map(len, texts))
    return {
        "first_ms": first_ms,
        "ms": ms,
        "tokens_per_s": 1e3 * tokens / ms,
        "tokens_per_s_two_in_flight": 1e3 * tokens / overlapped_ms,
    }


def _overlapped(launch: Callable[[], Pending], rounds: int = 12) -> float:
    """Return the milliseconds of a batch where the next is launched while one runs."""
    launch().rows()
    start_s, under_way = time.perf_counter(), launch()
    for _ in range(rounds):
        following = launch()
        under_way.rows()
        under_way = following
    under_way.rows()
    return 1e3 * (time.perf_counter() - start_s) / (rounds + 1)


def _beside_a_busy_thread(works: dict[str, Callable[[], object]]) -> Found:
    """Return wall milliseconds beside a thread that computes, by the interpreter's interval."""
    found: Found = {}
    usual_s = sys.getswitchinterval()
    for interval_s in (usual_s, 0.0001):
        sys.setswitchinterval(interval_s)
        with _busy_thread():
            found[f"switch interval {interval_s:g} s"] = {
                name: _wall_ms(run, rounds=3) for name, run in works.items()
            }
    sys.setswitchinterval(usual_s)
    return found


@contextmanager
def _busy_thread() -> Iterator[None]:
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            sum(range(1000))

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _first_ms(run: Callable[[], object]) -> float:
    return 1e3 * machine.timed(run, GPU)


def _wall_ms(run: Callable[[], object], rounds: int = ROUNDS) -> float:
    return 1e3 * median([machine.timed(run, GPU) for _ in range(rounds + 1)][1:])


def _device_ms(run: Callable[[], torch.Tensor]) -> float | str:
    try:
        return kernels.milliseconds(run)
    except Exception as error:  # noqa: BLE001 - a missing library is a finding
        return f"{type(error).__name__}: {error}"[:120]


def _host(pixels: Pixels | torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(pixels.cpu() if isinstance(pixels, torch.Tensor) else pixels)


def _lowest_cosine(rows: Rows, exact: Rows) -> float:
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(exact, axis=1)
    return float(((rows * exact).sum(axis=1) / lengths).min())


def run(source: str, parts: Sequence[str]) -> Found:
    """Run parts; what one raises is its finding."""
    results: Found = {}
    for name in parts:
        start_s = time.perf_counter()
        try:
            found = PARTS[name](source)
        except Exception as error:  # noqa: BLE001 - the others still run
            found = {"failed": f"{type(error).__name__}: {error}"[:2000]}
        results[name] = found | {"seconds": time.perf_counter() - start_s}
        report.progress(f"{name}: {json.dumps(results[name], indent=1)}")
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = report.command(__doc__)
    report.add_model(parser)
    parser.set_defaults(device="cuda", size="full")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here; this benchmark is for one")
    with checkpoint(options.size) as source:
        results = run(source, options.parts)
    report.write(options, results, report.show_values)


if __name__ == "__main__":
    main()
