"""The exit code of a test run, where a library crashes while the process ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CRASHES_AT_EXIT = """
import atexit, ctypes, os, signal

def crash():
    os.kill(os.getpid(), signal.SIGSEGV)

handler = ctypes.CFUNCTYPE(None)(crash)

def test_a_library_is_used(tmp_path):
    atexit.register(lambda: (tmp_path / "handled").touch())
    ctypes.CDLL(None).on_exit(handler, None)
    print(tmp_path)
    assert {passes}
"""


@pytest.mark.parametrize(
    ("plugin", "passes", "code"),
    [
        ("tests.conftest", True, 0),
        ("tests.conftest", False, 1),
        ("no:cacheprovider", True, -signal.SIGSEGV),  # the crash is real
    ],
)
def test_a_crash_at_exit_does_not_change_the_exit_code(tmp_path, plugin, passes, code):
    """Exit handlers have run by then, and the summary is whole."""
    (tmp_path / "test_it.py").write_text(CRASHES_AT_EXIT.format(passes=passes))
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "-p", plugin, "test_it.py"]
    command += ["--basetemp", str(tmp_path / "temporary")]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert ("1 passed" if passes else "1 failed") in done.stdout
    assert list(tmp_path.rglob("handled"))
