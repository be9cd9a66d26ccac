"""A second network beside this machine's, from which its ports are tried."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ray.util import get_node_ip_address

PROGRAM = Path(__file__).with_name("outsider.py")
INSIDE, OUTSIDE = "10.77.0.1", "10.77.0.2"

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None,
    reason="network namespaces need root and iproute2",
)


@contextmanager
def network() -> Iterator[str]:
    """Make a namespace whose only way leads to this machine; yield its name."""
    name = f"outside{os.getpid()}"
    here, there = f"h{os.getpid()}", f"t{os.getpid()}"
    _ip("netns", "add", name)
    try:
        _ip("link", "add", here, "type", "veth", "peer", "name", there)
        _ip("link", "set", there, "netns", name)
        _ip("address", "add", f"{INSIDE}/30", "dev", here)
        _ip("link", "set", here, "up")
        _ip("-n", name, "address", "add", f"{OUTSIDE}/30", "dev", there)
        _ip("-n", name, "link", "set", there, "up")
        _ip("-n", name, "route", "add", "default", "via", INSIDE)
        yield name
    finally:
        _ip("netns", "delete", name)  # its end of the pair goes with it, and so the other


def seen_from(name: str, folder: Path, token: str | None = None) -> dict[int, dict[str, Any]]:
    """Return what each port of this machine answers to another machine, see outsider.py.

    Args:
        name: of the namespace.
        folder: a home without Ray's token; a folder `marker` in it tells that a pickle was read.
        token: Ray's token, if the caller has it.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = ["ip", "netns", "exec", name, sys.executable, str(PROGRAM), get_node_ip_address()]
    command += [str(folder / "marker"), *([token] if token else [])]
    done = subprocess.run(
        command,
        env=environment | {"HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return {int(port): seen for port, seen in json.loads(done.stdout).items()}


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)
