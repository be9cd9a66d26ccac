"""Which engine is the fastest on this CPU: ours, the reference, ONNX Runtime or OpenVINO?

Each engine runs in a process of its own, all on the same inputs, in turns. The rivals' files are
exported at run time from `implementation="reference"`, and quantised as their documentation says
for transformers. Prints times, the ratio to our float32 (higher is faster), the lowest cosine to
the reference's rows and the peak of memory of each process.

    python -m benchmarks.cpu_engines --size full|demo [--tower text|vision] [--threads 1 2]
        [--count 1 8] [--rounds 5] [--json]

Needs the extras `reference` and `rivals`; an engine that is not installed is left out by name.
`--size full` needs 16 GB of memory and 12 GB of disk.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.harness import report, rivals
from benchmarks.harness.random_checkpoint import checkpoint
from deployments.model import ClipModel, reference
from deployments.model.clip import TowerName
from deployments.model.output import Rows, finish
from deployments.model.weights.checkpoint import Checkpoint

OURS = ("ours float32", "ours bfloat16", "ours int8")
ENGINES = (*OURS, "reference float32", *rivals.ENGINES)
TEXTS = {1: 16, 8: 128}  # how many, of how many tokens
IMAGES = (1, 4)
SETTLE_S = 0.05  # an engine's idle threads spin for some milliseconds


@dataclass(frozen=True)
class Result:
    """One engine on one piece of work; `speed` is the ratio to our float32."""

    work: str
    threads: int
    engine: str
    ms: float
    speed: float
    cosine: float
    peak_gb: float


def engine_of(
    name: str, tower: TowerName, source: str, folder: Path, threads: int
) -> rivals.Forward:
    """Load an engine: a function from a padded batch (see `rivals.batch`) to rows."""
    if name in rivals.ENGINES:
        return rivals.load(name, folder, threads)
    torch.set_num_threads(threads)
    whose, dtype = name.split()
    if whose == "reference":
        build = reference.text_module if tower == "text" else reference.vision_module
        module = build(Checkpoint.open(source), torch.device("cpu"), torch.float32)
        return torch.inference_mode()(lambda inputs: module(torch.from_numpy(inputs)).numpy())
    model = ClipModel.load(source, dtype=dtype, towers=(tower,))
    if tower == "text":
        return lambda inputs: model.embed_tokens(list(inputs.astype(np.int32)))
    arch = model.architecture.vision
    mean, std = (np.array(x, dtype=np.float32)[:, None, None] for x in (arch.mean, arch.std))

    def forward(inputs: NDArray[Any]) -> Rows:
        pixels = ((inputs * std + mean) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
        return model.embed_pixels(np.ascontiguousarray(pixels))

    return forward


def serve(
    pipe: Connection, load: Callable[[], rivals.Forward], batches: Sequence[NDArray[Any]]
) -> None:
    """Run batches by number until told to end; answer with seconds, rows and the peak so far."""
    os.dup2(2, 1)
    forward = load()
    pipe.send("ready")
    while (index := pipe.recv()) is not None:
        start = time.perf_counter()
        rows = forward(batches[index])
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        pipe.send((seconds, finish(rows), peak))


@contextmanager
def process(target: Callable[..., None], *arguments: object) -> Iterator[Connection]:
    """Run a function in a new process and yield a pipe to it; wait for its end."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=target, args=(theirs, *arguments))
    child.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        child.join()


def _write(pipe: Connection, *arguments: Any) -> None:  # noqa: ANN401 - those of rivals.write
    os.dup2(2, 1)  # the libraries print; stdout is for the results
    rivals.write(*arguments)
    pipe.send("written")


def export(engines: Sequence[str], tower: str, source: str, folder: Path) -> list[str]:
    """Write the rivals' files, each in its own process; return the engines that can run."""
    usable = []
    for name in engines:
        if faults := rivals.missing(name):
            report.progress(f"{name} is left out: not installed: {faults}")
            continue
        if name in rivals.ENGINES:
            report.progress(f"writing the {tower} tower for {name}")
            with process(_write, name, source, tower, folder) as pipe:
                try:
                    pipe.recv()
                except EOFError:
                    report.progress(f"{name} is left out: its file could not be written")
                    continue
        usable.append(name)
    return usable


def compare(
    engines: Sequence[str],
    tower: TowerName,
    source: str,
    folder: Path,
    threads: int,
    options: argparse.Namespace,
) -> list[Result]:
    """Time all engines on all work of a tower, in turns."""
    arch = Checkpoint.open(source).architecture
    counts = [x for x in (TEXTS if tower == "text" else IMAGES) if x in options.count]
    batches = [rivals.batch(arch, tower, count, TEXTS.get(count, 0)) for count in counts]
    results = []
    with ExitStack() as stack:
        pipes = {}
        for name in engines:
            report.progress(f"loading {name}, {threads} threads")
            load = partial(engine_of, name, tower, source, folder, threads)
            pipes[name] = stack.enter_context(process(serve, load, batches))
            pipes[name].recv()
        for index, count in enumerate(counts):
            found: dict[str, list[Any]] = {name: [] for name in pipes}
            for _ in range(options.rounds + 1):  # the first one warms up
                for name, pipe in pipes.items():
                    time.sleep(SETTLE_S)
                    pipe.send(index)
                    found[name].append(pipe.recv())
            kind = f"text of {TEXTS[count]} tokens" if tower == "text" else "image"
            work = f"{count} x {kind}"
            results += summary(work, threads, found)
        for pipe in pipes.values():
            pipe.send(None)
    return results


def summary(work: str, threads: int, found: dict[str, list[Any]]) -> list[Result]:
    """Turn (seconds, rows, peak) of each engine's runs into results."""
    times_s = {name: median(run[0] for run in runs[1:]) for name, runs in found.items()}
    exact = found["reference float32"][-1][1]
    return [
        Result(
            work,
            threads,
            name,
            ms=times_s[name] * 1e3,
            speed=times_s["ours float32"] / times_s[name],
            cosine=float((runs[-1][1] * exact).sum(axis=1).min()),
            peak_gb=runs[-1][2] / 1e9,
        )
        for name, runs in found.items()
    ]


def show(results: Sequence[dict[str, Any]]) -> None:
    """Print a line for each engine and piece of work."""
    for x in results:
        print(
            f"{x['work']:22s} {x['threads']} threads  {x['engine']:20s} {x['ms']:9.1f} ms "
            f"{x['speed']:5.2f}x  cosine {x['cosine']:.5f}  peak {x['peak_gb']:.2f} GB"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = report.command(__doc__)
    parser.add_argument("--size", choices=("demo", "full"), default="demo")
    parser.add_argument(
        "--tower", nargs="+", choices=("text", "vision"), default=["text", "vision"]
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--count", nargs="+", type=int, default=[1, 4, 8], help="of texts, images")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    rivals.quiet()
    results = []
    with checkpoint(options.size) as source, tempfile.TemporaryDirectory() as temporary:
        for tower in options.tower:
            folder = Path(temporary) / tower
            folder.mkdir()
            engines = export(ENGINES, tower, source, folder)
            for threads in options.threads:
                os.environ["OMP_NUM_THREADS"] = str(threads)  # read when a process starts
                results += compare(engines, tower, source, folder, threads, options)
    report.write(options, [asdict(result) for result in results], show)


if __name__ == "__main__":
    main()
