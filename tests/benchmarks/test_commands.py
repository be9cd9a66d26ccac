"""What every benchmark's command line promises."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness import report

ROOT = Path(__file__).parents[2]
NAMES = sorted(x.stem for x in (ROOT / "benchmarks").glob("*.py") if x.stem != "__init__")
README = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_names_its_question_and_its_options(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first sentence is a question, `--help` says it and knows `--json`; the README has it."""
    module = importlib.import_module(f"benchmarks.{name}")
    question = module.__doc__.split("\n\n")[0]
    assert question.endswith("?")
    assert f"python -m benchmarks.{name}" in module.__doc__
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert question in said
    assert "--json" in said
    assert f"python -m benchmarks.{name}" in README


def test_the_readme_names_no_other_benchmark() -> None:
    named = set(re.findall(r"python -m benchmarks\.(\w+)", README))
    assert named - {"harness"} == set(NAMES)


def test_json_is_one_document_with_the_machine_and_nothing_else_on_stdout() -> None:
    """A whole benchmark, run as people run it."""
    command = [sys.executable, "-m", "benchmarks.scheduling", "--json"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    document = json.loads(done.stdout)
    assert document.keys() == {"machine", "results"}
    assert document["machine"]["cores"] >= 1
    assert 1 <= document["results"]["batches_formed"]["ratio"] < 1.5


def test_without_json_the_results_are_shown_and_progress_is_not_on_stdout(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = report.command("Why?").parse_args([])
    report.progress("half done")
    report.write(options, {"answer": 42}, report.show_values)
    said = capsys.readouterr()
    assert said.err == "half done\n"
    assert said.out.startswith("machine: {")
    assert said.out.endswith("answer: 42\n")
