"""The wheel against the tree, and the version in every place that names it."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("deployments", "serve_app")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The files that a fresh clone has."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs a git checkout: its list of files is what the wheel is compared with")
    found = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    return [name for name in found.stdout.split("\0") if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of a copy, so that nothing of an earlier build gets into it; needs no network."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked:
        target = folder / "tree" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    stale = folder / "tree" / "deployments" / "__pycache__" / "config.cpython-311.pyc"
    stale.parent.mkdir()
    stale.write_bytes(b"compiled by an earlier run")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--quiet", "--wheel-dir", str(folder), str(folder / "tree")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_file_of_the_packages(wheel: zipfile.ZipFile, tracked: list[str]):
    """With its content; and nothing that is not in the tree."""
    expected = {name for name in tracked if name.startswith(tuple(f"{x}/" for x in PACKAGES))}
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == expected
    for name in expected:
        assert wheel.read(name) == (ROOT / name).read_bytes(), name


def test_the_wheel_has_the_command_and_the_licence(wheel: zipfile.ZipFile):
    info = f"jina_clip_serve-{PROJECT['version']}.dist-info"
    scripts = wheel.read(f"{info}/entry_points.txt").decode()
    assert "jina-clip-serve = serve_app.cli:main" in scripts
    assert f"{info}/licenses/LICENSE" in wheel.namelist()


def test_there_is_one_version(tracked: list[str]):
    """Of the installed package, the newest release in the changelog, and every image tag."""
    expected = PROJECT["version"]
    assert version("jina-clip-serve") == expected
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [heading for heading in headings if heading != "Unreleased"]
    assert headings
    assert released[0] == expected
    tags = {
        tag
        for name in tracked
        if name.endswith((".md", ".yaml", "Dockerfile"))
        for tag in re.findall(r"jina-clip-serve:(\d[\w.]*\w)", (ROOT / name).read_text())
    }
    assert tags == {expected}
