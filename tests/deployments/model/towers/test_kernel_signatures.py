"""The calls of attention libraries, held against the libraries' own sources.

`pytest -m index` downloads those that need a GPU to be installed (13 MB); torch's is here.
"""

import ast
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn.attention import varlen

from deployments.model.towers import kernels

DOWNLOAD = (sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--no-build-isolation")
# By kernel: the package, the module that is imported, the file with the function, its name.
LIBRARIES = {
    "flash2": (
        "flash-attn==2.8.3",
        "flash_attn",
        "flash_attn/flash_attn_interface.py",
        "flash_attn_varlen_func",
    ),
    "flash4": (
        "flash-attn-4==4.0.0b36",
        "flash_attn.cute",
        "flash_attn/cute/interface.py",
        "flash_attn_varlen_func",
    ),
    "dense_flash4": (
        "flash-attn-4==4.0.0b36",
        "flash_attn.cute",
        "flash_attn/cute/interface.py",
        "flash_attn_func",
    ),
    "dense_xformers": (
        "xformers==0.0.35",
        "xformers.ops",
        "xformers/ops/fmha/__init__.py",
        "memory_efficient_attention",
    ),
}
BOUNDS = torch.tensor([0, 2, 3], dtype=torch.int32)
Q, K, V = torch.randn(3, 3, 2, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packages")


def download(package: str, folder: Path) -> Path:
    """Return a folder with the package's files, or skip where no index has it."""
    place = folder / package
    if not place.exists():
        only = "--only-binary" if "-4" in package else "--no-binary"
        command = [*DOWNLOAD, only, ":all:", "--dest", str(place), package]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=250)
        if done.returncode:
            pytest.skip(f"no package index has {package}: {done.stderr.splitlines()[-1:]}")
        (archive,) = place.iterdir()
        if archive.suffix == ".whl":
            zipfile.ZipFile(archive).extractall(place)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(place, filter="data")
    return place


def source(root: Path, name: str) -> str:
    """Return a file's text, wherever the package's sources begin."""
    found = min(root.rglob(name), key=lambda path: len(path.parts))
    return found.read_text(encoding="utf-8")


def signed(code: str, name: str, calls: list[dict[str, Any]], result: object) -> Any:
    """Return a function with the parameters of one in the code, which notes its arguments."""
    nodes = ast.walk(ast.parse(code))
    function = next(x for x in nodes if isinstance(x, ast.FunctionDef) and x.name == name)
    arguments = function.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        argument.annotation = None
    nothing = ast.Constant(None)
    arguments.defaults = [nothing for _ in arguments.defaults]
    arguments.kw_defaults = [x and nothing for x in arguments.kw_defaults]
    body = "    calls.append(dict(locals()))\n    return result"
    text = f"def {name}({ast.unparse(arguments)}):\n{body}"
    space: dict[str, Any] = {"calls": calls, "result": result}
    exec(text, space)
    return space[name]


def exported(code: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            yield from (name.asname or name.name for name in node.names)


def check(call: dict[str, Any]) -> None:
    """Assert that what has a known name got what belongs there."""
    known = {"q": Q, "query": Q, "k": K, "key": K, "v": V, "value": V}
    known |= dict.fromkeys(("cu_seqlens_q", "cu_seqlens_k", "cu_seq_q", "cu_seq_k"), BOUNDS)
    known |= dict.fromkeys(("max_seqlen_q", "max_seqlen_k", "max_q", "max_k"), 2)
    for name in known.keys() & call.keys():
        assert call[name] is known[name], name
    given = {name for name, value in call.items() if value is not None}
    assert given <= known.keys() | {"num_splits"}


@pytest.mark.index
@pytest.mark.parametrize("kernel", LIBRARIES)
def test_a_library_takes_the_arguments_that_it_is_given(
    kernel: str, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its function has these parameters, and is where it is imported from."""
    package, module, file, name = LIBRARIES[kernel]
    root = download(package, folder)
    calls: list[dict[str, Any]] = []
    library = ModuleType(module)
    setattr(library, name, signed(source(root, file), name, calls, (Q, None)))
    assert name in exported(source(root, f"{module.replace('.', '/')}/__init__.py"))
    monkeypatch.setitem(sys.modules, module, library)
    run = getattr(kernels, kernel)
    packed = (BOUNDS, 2) if kernel in kernels.PACKED else ()
    assert run(Q, K, V, *packed)[0] is not None
    (call,) = calls
    check(call)
    assert len([x for x in call.values() if x is not None]) == 3 + 2 * len(packed)


def test_torch_takes_the_arguments_that_it_is_given(monkeypatch: pytest.MonkeyPatch):
    """Its own variable-length attention, in the release that is installed."""
    calls: list[dict[str, Any]] = []
    code = Path(varlen.__file__).read_text(encoding="utf-8")
    monkeypatch.setattr(varlen, "varlen_attn", signed(code, "varlen_attn", calls, (Q, None)))
    kernels._takes_num_splits.cache_clear()
    assert kernels.varlen(Q, K, V, BOUNDS, 2) is Q
    kernels._takes_num_splits.cache_clear()
    (call,) = calls
    check(call)
    assert call.get("num_splits", 1) == 1


def test_an_argument_that_a_library_does_not_have_is_found():
    """The stand-in has the parameters of the source, or the tests above could not fail."""
    function = signed("def f(q, *, cu_seqlens_q: int = 3): ...", "f", [], None)
    function(1, cu_seqlens_q=2)
    with pytest.raises(TypeError):
        function(1, cu_seqlens=2)
