"""What the command lines of all benchmarks have in common.

Results go to stdout: a table for people, or with `--json` one JSON document with the machine and
the results. Progress goes to stderr.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

from benchmarks.harness.machine import describe

Results = TypeVar("Results")


def command(docstring: str | None) -> argparse.ArgumentParser:
    """Return a parser that knows `--json`, and explains the benchmark by its docstring."""
    parser = argparse.ArgumentParser(
        description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document, no table")
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which checkpoint runs on what."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--size",
        choices=("demo", "full"),
        default="demo",
        help="full: random weights of the published size",
    )


def show_values(results: Mapping[str, object]) -> None:
    """Print a line for each part of the results."""
    for name, value in results.items():
        print(f"{name}: {value}")


def write(options: argparse.Namespace, results: Results, show: Callable[[Results], None]) -> None:
    """Print the machine and the results: as JSON if the options say so, else by `show`."""
    machine = describe(torch.device(getattr(options, "device", "cpu")))
    if options.json:
        print(json.dumps({"machine": machine, "results": results}))
        return
    print(f"machine: {machine}")
    show(results)


def progress(text: str) -> None:
    """Say what is under way."""
    print(text, file=sys.stderr, flush=True)
