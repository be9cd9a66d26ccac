"""The layers of the project, read from its import statements."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = ("serve_app", "deployments")
EVERYWHERE = (*PRODUCT, "tests", "benchmarks")
MAX_LINES = 300

# What needs neither Ray's runtime nor torch, so that its tests start nothing.
PURE = (
    "autoscaling",
    "checked",
    "config",
    "engine.batcher",
    "engine.call",
    "engine.queue",
    "engine.watchdog",
    "errors",
    "image_config",
    "messages",
    "plan",
    "rehearsal",
    "routing.admission",
    "routing.cache",
    "routing.coalescing",
    "routing.interactive",
)
# Packages of `deployments` by floor, lowest first: none imports one of its own floor or above.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("model",),
    ("errors", "rehearsal", "checked"),
    ("autoscaling", "image_config"),
    ("messages", "config"),
    ("metrics",),
    ("engine", "images"),
    ("routing",),
    ("router", "text_tower", "vision_tower", "bulk", "plan"),
)

# (files, modules that they must not import), matched by dotted prefix.
FORBIDDEN: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (("deployments",), ("serve_app", "tests", "benchmarks")),
    (("serve_app",), ("tests", "benchmarks", "torch")),
    (
        ("deployments.model",),
        ("ray", "pydantic", "starlette", "fastapi", "aiohttp", "httpx", "requests"),
    ),
    (
        tuple(f"deployments.{x}" for x in PURE),
        ("torch", "ray"),
    ),
]
THIRD_PARTY_TOWERS = ("transformers", "timm")
THEIR_PLACE = "deployments.model.reference"


def test_every_module_that_has_to_stay_pure_exists():
    """A rule about a module that was renamed would hold for nothing."""
    files = (ROOT / "deployments").rglob("*")
    names = {module_name(ROOT / "deployments", path) for path in files}
    assert set(PURE) <= names


def test_every_module_of_deployments_has_a_floor():
    """A new package that no floor names would be checked by nothing."""
    names = {path.stem for path in (ROOT / "deployments").glob("[a-z]*") if "." not in path.stem}
    assert names == {name for floor in FLOORS for name in floor}


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def module_name(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, name: str) -> Iterator[str]:
    """Yield each imported module, and each imported name as if it were one."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def layer_faults(name: str, imported: str) -> Iterator[str]:
    for files, modules in FORBIDDEN:
        if within(name, files) and within(imported, modules):
            yield f"{name} imports {imported}"
    upwards = within(imported, ("deployments",)) and not within(imported, ("deployments.model",))
    if within(name, ("deployments.model",)) and upwards and imported != "deployments":
        yield f"{name} imports {imported}"
    if within(imported, THIRD_PARTY_TOWERS) and name != THEIR_PLACE:
        yield f"{name} imports {imported}"
    own, other = floor_of(name), floor_of(imported)
    if own and other and own[1] != other[1] and own[0] <= other[0]:
        yield f"{name} imports {imported}"


def floor_of(module: str) -> tuple[int, str] | None:
    """Return the floor of a module of `deployments` and the package that it belongs to."""
    parts = module.split(".")
    if parts[0] != "deployments" or len(parts) < 2:
        return None
    return next(((n, parts[1]) for n, floor in enumerate(FLOORS) if parts[1] in floor), None)


def faults(root: Path) -> list[str]:
    """Return every broken rule of a source tree."""
    found = []
    for path in (p for package in EVERYWHERE for p in sorted((root / package).rglob("*.py"))):
        name = module_name(root, path)
        modules = list(imports(path, name))
        if within(name, PRODUCT):
            found += [fault for module in modules for fault in layer_faults(name, module)]
        if "__future__.annotations" in modules:
            found.append(f"{name} postpones annotations")
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_LINES:
            found.append(f"{name} has {lines} lines")
    return found


def test_the_project_keeps_its_layers() -> None:
    """Imports run serve_app -> deployments -> deployments.model, and files stay short."""
    assert faults(ROOT) == []


@pytest.mark.parametrize(
    ("file", "source", "fault"),
    [
        ("deployments/router.py", "import serve_app.api", "imports serve_app.api"),
        ("deployments/model/clip.py", "import ray", "imports ray"),
        ("deployments/model/clip.py", "from pydantic import BaseModel", "imports pydantic"),
        (
            "deployments/model/clip.py",
            "from deployments import errors",
            "imports deployments.errors",
        ),
        ("deployments/model/clip.py", "from ..errors import X", "imports deployments.errors"),
        ("deployments/model/__init__.py", "from .. import errors", "imports deployments.errors"),
        ("deployments/messages.py", "def f():\n    import torch", "imports torch"),
        ("deployments/messages.py", "import deployments.routing", "imports deployments.routing"),
        (
            "deployments/engine/x.py",
            "import deployments.images.s3",
            "imports deployments.images.s3",
        ),
        ("deployments/engine/x.py", "import deployments.bulk", "imports deployments.bulk"),
        ("deployments/plan.py", "from ray import serve", "imports ray"),
        ("serve_app/api/ingress.py", "import torch.nn as nn", "imports torch.nn"),
        ("serve_app/api/ingress.py", "from transformers import AutoModel", "imports transformers"),
        ("deployments/model/clip.py", "import timm", "imports timm"),
        ("tests/test_x.py", "from __future__ import annotations", "postpones annotations"),
        ("benchmarks/long.py", "x = 0\n" * 301, "has 301 lines"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, source: str, fault: str) -> None:
    """The checker names each kind of broken rule; without them the same tree is clean."""
    planted = tmp_path / file
    planted.parent.mkdir(parents=True)
    planted.write_text("import json\n")
    assert faults(tmp_path) == []
    planted.write_text(source)
    assert any(fault in found for found in faults(tmp_path))


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("serve_app/app.py", "import ray\nfrom deployments.model import ClipModel"),
        ("deployments/model/towers/text.py", "import torch\nfrom deployments.model import image"),
        ("deployments/model/reference.py", "import timm\nimport transformers"),
        ("deployments/rayonnant.py", "import torchlight"),
        ("tests/test_x.py", "x = 0\n" * 300),
    ],
)
def test_what_is_allowed_is_not_reported(tmp_path: Path, file: str, source: str) -> None:
    """Downward imports, the oracle's libraries in their place and similar names pass."""
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(source)
    assert faults(tmp_path) == []


def loaded_after(modules: list[str], suspects: set[str], then: str = "pass") -> set[str]:
    """Import modules in a fresh interpreter, do more; return which suspects that brought in."""
    code = f"import sys, {', '.join(modules)}; {then}"
    code += f"; print(*sorted({suspects!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_modules_of_the_router_load_without_torch_or_ray() -> None:
    """A process that tokenises, reads image headers and finishes rows never imports torch."""
    light = [f"deployments.model.{x}" for x in ("tokenizer", "pictures.image", "output", "errors")]
    light += ["deployments.errors", "deployments.messages", "deployments.config"]
    assert loaded_after(light, {"torch", "ray"}) == set()
    assert loaded_after(["deployments.model.towers.attention"], {"torch", "ray"}) == {"torch"}


def test_a_tower_on_a_cpu_starts_without_the_compiler() -> None:
    """Importing it takes more than a second, in each tower's process."""
    load = "m = deployments.model.ClipModel.load('demo', device='cpu', towers=('text',))"
    compiler = {"torch._dynamo"}
    assert loaded_after(["deployments.model"], compiler, f"{load}; m.encode_text(['a'])") == set()
    assert loaded_after(["torch"], compiler, "torch.compile(abs)") == compiler
