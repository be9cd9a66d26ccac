"""What `up` says of proxy, event loops and transport, and what Ray is told of them."""

import os
import subprocess
import sys

import pytest

from serve_app.listening import LOOPBACK, Ingress, describe_mode, prepare_environment

HAPROXY = Ingress("haproxy", LOOPBACK, 8000)
STOCK = Ingress("stock", LOOPBACK, 8000)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """Each test begins without settings of Ray's, and leaves none."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    monkeypatch.setattr(os, "environ", kept)


def test_the_modes_line_tells_the_fast_path_from_the_slow_one(monkeypatch):
    """All three parts change with what is set and installed."""
    plain = describe_mode(STOCK)
    assert "stock proxy" in plain
    assert "Ray actor calls" in plain
    prepare_environment(HAPROXY)
    assert describe_mode(HAPROXY) == (
        "Mode: HAProxy, uvloop, gRPC of up to 64 MiB between deployments."
    )
    monkeypatch.setitem(os.environ, "RAY_USE_UVLOOP", "0")
    assert "asyncio" in describe_mode(HAPROXY)


def test_a_ray_without_its_token_is_said(monkeypatch):
    """Its ports are open to the network."""
    assert "token" not in describe_mode(HAPROXY)
    monkeypatch.setitem(os.environ, "RAY_AUTH_MODE", "disabled")
    assert "whoever reaches its ports can run code here" in describe_mode(HAPROXY)


def test_what_the_user_has_set_stays():
    """The line tells what is, not what the product prefers."""
    os.environ["RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"] = str(16 * 1024 * 1024)
    prepare_environment(STOCK)
    assert "gRPC of up to 16 MiB" in describe_mode(STOCK)


def test_a_call_of_ray_where_none_runs_starts_none():
    """Ray Serve's threads may call it after the service has ended."""
    program = (
        "from serve_app.listening import LOOPBACK, Ingress, prepare_environment as prepare\n"
        "prepare(Ingress('stock', LOOPBACK, 8000))\n"
        "import ray\n"
        "ray.wait([], timeout=0)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "Ray has not been started yet" in done.stderr
