"""The lines for moving here, run against the service and compared with the model's rows."""

import ast
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve_app.gallery import FOLDER

BEFORE, AFTER, UNCHANGED = "Before:", "After:", "Unchanged:"
TEXTS = ["غروب جميل على الشاطئ", "A beautiful sunset over the beach"]
QUERY = "beautiful sunset over the beach"
APPLE, BEACH = "red-apple.png", "sun.png"
HOSTED, TRANSFORMERS, SENTENCES, JAVASCRIPT, ONNX = WAYS = (
    "From the hosted Jina API",
    "From transformers",
    "From sentence-transformers",
    "From transformers.js",
    "From ONNX Runtime",
)
PYTHON = [way for way in WAYS if way != JAVASCRIPT]
WIDTHS = {HOSTED: 64, TRANSFORMERS: 64, SENTENCES: 64, JAVASCRIPT: None, ONNX: None}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the picture that a snippet opens."""
    Image.open(FOLDER / BEACH).convert("RGB").save(tmp_path / "beach1.jpg", quality=95)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(
    service: Any, place: Path, moving: dict[str, Any], execute: Any
) -> Callable[..., dict[str, Any]]:
    """A function that runs a way's Python blocks as they will be, and returns their names."""

    def run_python(way: str, old: str = "", new: str = "") -> dict[str, Any]:
        code = after(moving[way], service)
        assert old in code
        names: dict[str, Any] = execute(code.replace(old, new) if old else code)
        return names

    return run_python


def after(blocks: list[Any], service: Any) -> str:
    """Join what stays and what is new, and let it ask the service of the test."""
    code = "".join(block.code for block in blocks if block.lead in (AFTER, UNCHANGED))
    code = code.replace("http://127.0.0.1:8000", service.url)
    for name, file in {"apple.jpg": APPLE, "beach1.jpg": BEACH}.items():
        code = code.replace(f"https://example.com/{name}", service.image_url(file))
    return code


def expected(model: Any, way: str) -> dict[str, Any]:
    """The model's own rows for what a way embeds, by the names that the snippets give them."""
    width = WIDTHS[way]
    if way == HOSTED:
        text = model.encode_text(["a red apple"], "retrieval.query", width)
        image = model.encode_image([(FOLDER / APPLE).read_bytes()], width)
        return {"embeddings": np.concatenate([text, image])}
    picture = Path("beach1.jpg") if way == ONNX else FOLDER / BEACH
    rows = {
        "text_embeddings": model.encode_text(TEXTS, None, width),
        "image_embeddings": model.encode_image([picture.read_bytes()], width),
    }
    if way in (TRANSFORMERS, SENTENCES):
        rows["query_embeddings"] = model.encode_text([QUERY], "retrieval.query", width)[0]
    return rows


def compare(names: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, rows in wanted.items():
        np.testing.assert_allclose(np.float32(names[name]), rows, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("way", PYTHON)
def test_the_lines_after_give_the_models_rows(run: Any, demo: Any, way: str) -> None:
    """Every array that the snippet names is the one that the model gives for that input."""
    compare(run(way), expected(demo, way))


@pytest.mark.parametrize(
    ("way", "old", "new"),
    [
        (HOSTED, '"retrieval.query"', "None"),
        (TRANSFORMERS, "sunset over", "storm over"),
        (SENTENCES, 'prompt_name="retrieval.query", ', ""),
        (ONNX, "texts = ", "texts = ['one', 'two'] or "),
    ],
)
def test_other_lines_give_other_rows(run: Any, demo: Any, way: str, old: str, new: str) -> None:
    """Without the task, or with another text, the comparison fails."""
    with pytest.raises(AssertionError, match="embeddings"):
        compare(run(way, old, new), expected(demo, way))


@pytest.mark.parametrize("runner", ["node", "chromium"])
def test_the_javascript_gives_the_models_rows(
    service: Any, moving: dict[str, Any], demo: Any, runner: str
) -> None:
    """The lines for transformers.js give both arrays, in Node and in a browser."""
    code = after(moving[JAVASCRIPT], service)
    result = "({ text_embeddings: textEmbeddings, image_embeddings: imageEmbeddings })"
    names = RUNNERS[runner](code, result, service.url)
    compare(names, expected(demo, JAVASCRIPT))
    other = RUNNERS[runner](code.replace("sunset over", "storm over"), result, service.url)
    with pytest.raises(AssertionError, match="embeddings"):
        compare(other, expected(demo, JAVASCRIPT))


def node(code: str, result: str, _url: str) -> Any:
    """Run code in Node; return what an expression then is."""
    program = program_or_skip("node")
    script = f"{code}\nconsole.log(JSON.stringify({result}));"
    command = [program, "--input-type=module", "--eval", script]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def chromium(code: str, result: str, url: str) -> Any:
    """Run code in a page of the service, as a script of the same origin would."""
    program = program_or_skip("chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=program, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.goto(f"{url}/health")
        names = tab.evaluate(f"async () => {{ {code} return {result}; }}")
        browser.close()
    return names


def program_or_skip(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"no {name} on this machine: apt-get install {name}")
    return path


RUNNERS: dict[str, Callable[[str, str, str], Any]] = {"node": node, "chromium": chromium}


def test_every_way_has_lines_before_and_after(moving: dict[str, Any]) -> None:
    """The ways are those that are run here, and every block says what it is."""
    assert tuple(moving) == WAYS
    for way, blocks in moving.items():
        assert {block.lead for block in blocks} == {BEFORE, AFTER, UNCHANGED}
        assert {x.language for x in blocks} == {"python" if way in PYTHON else "javascript"}


@pytest.mark.parametrize("way", PYTHON)
def test_the_lines_before_are_python(moving: dict[str, Any], way: str) -> None:
    """What cannot run here, for want of weights, compiles together with what stays."""
    code = "".join(block.code for block in moving[way] if block.lead in (BEFORE, UNCHANGED))
    assert ast.parse(code).body


def test_the_lines_before_are_javascript(moving: dict[str, Any], tmp_path: Path) -> None:
    """Node finds no error of syntax in the lines for transformers.js."""
    path = tmp_path / "before.mjs"
    path.write_text("".join(x.code for x in moving[JAVASCRIPT] if x.lead in (BEFORE, UNCHANGED)))
    subprocess.run([program_or_skip("node"), "--check", path], check=True, timeout=60)


def test_a_prefix_written_by_hand_is_the_task(service: Any) -> None:
    """As the document says for code that writes the prefix itself."""
    prefix = "Represent the query for retrieving evidence documents: "
    by_hand = service.embed([prefix + QUERY])
    np.testing.assert_allclose(by_hand, service.embed([QUERY], task="retrieval.query"), atol=1e-6)


def test_no_cors_headers_are_sent(service: Any) -> None:
    """As the document says for pages of other origins."""
    answer = service.client.get("/v1/models", headers={"origin": "https://example.com"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
