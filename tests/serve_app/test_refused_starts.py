"""A configuration that cannot work ends `jina-clip-serve up` with one message, and no loop."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from deployments.config import AppConfig
from deployments.errors import ServiceError
from serve_app.cli import main
from serve_app.listening import Ingress, free_port, holder, needed_ports, port_is_free
from serve_app.server import needed_gpus

PROGRAM = Path(sys.executable).parent / "jina-clip-serve"


def refused(*arguments):
    """Run the command in this process; return its exit code and what it said."""
    done = CliRunner().invoke(main, ["up", *arguments])
    assert isinstance(done.exception, SystemExit), done.exception  # or a user sees a traceback
    return done.exit_code, done.output


@pytest.fixture
def taken():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("setting", "code", "words"),
    [
        ("model.source=./nowhere", 1, "no folder './nowhere'"),
        ("images.max_image_bytes=99999999", 2, "one image must fit"),
        ("images.local_files=true", 2, "a server must not read its disk"),
        ("api_keys_file=./nowhere.yaml", 1, "nowhere.yaml"),
        ("batches.folder=s3://bucket/batches", 2, "no store such as s3://"),
        (
            "batches.folder=./batches",
            2,
            "Error: batches.folder: './batches' is not an absolute path",
        ),
    ],
)
def test_what_can_be_known_before_ray_starts_ends_there(setting, code, words):
    """The message says what was wrong with the value; no traceback, no Ray."""
    found, said = refused(setting)
    assert found == code
    assert words in said
    assert "Traceback" not in said
    assert said.count("Error:") == 1


def test_a_taken_port_ends_it(taken):
    """The port is named; here as a user runs the command."""
    command = [PROGRAM, "up", "--port", str(taken)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert f"port {taken} (HTTP) is taken" in said
    assert f"process {os.getpid()}" in said.replace("\n", " ")
    assert "Traceback" not in said


def test_gpus_that_are_not_here_end_it(monkeypatch):
    """Both a device and a share of GPUs are counted, before Ray waits for them for ever."""
    monkeypatch.setattr("deployments.model.runtime.hardware.gpu_count", lambda: 0)
    for setting in ("model.device=cuda", "text.num_gpus=0.5"):
        found, said = refused(setting)
        assert (found, "Traceback" in said) == (1, False)
        assert "torch sees 0 here" in said


def test_what_only_a_replica_finds_ends_the_launch_after_one_try(service):
    """The replica's own message with its tower's name is the error that `up` shows."""
    from ray import serve

    from serve_app.launch import launch

    settings = {
        "model": {"attention": "flash4", "device": "cpu"},
        "text": {"num_cpus": 0.1},
        "vision": {"enabled": False},
        "router": {"num_cpus": 0.1},
    }
    wanted = "^TextTower: attention 'flash4' does not run on cpu"
    with pytest.raises(ServiceError, match=wanted) as refused:
        launch(AppConfig.model_validate(settings), "refused", "/refused")
    serve.delete("refused")
    assert "Traceback" not in str(refused.value)


def test_haproxy_needs_two_more_ports(monkeypatch):
    """Their numbers are those that Ray Serve takes from the environment."""
    monkeypatch.setenv("RAY_SERVE_HAPROXY_STATS_PORT", "1234")
    monkeypatch.delenv("RAY_SERVE_HAPROXY_METRICS_PORT", raising=False)
    ports = [(host, port) for host, port, _ in needed_ports(Ingress("haproxy", "0.0.0.0", 80))]
    assert ports == [("0.0.0.0", 80), ("127.0.0.1", 1234), ("127.0.0.1", 9101)]
    assert [port for _, port, _ in needed_ports(Ingress("direct", "127.0.0.1", 80))] == [80]


def test_a_port_is_free_until_something_listens(taken):
    """Another address of the machine does not count."""
    assert not port_is_free("127.0.0.1", taken)
    assert port_is_free("127.0.0.3", taken)


def test_the_gpus_of_the_first_replicas_are_counted():
    """Bounds count from below: more come when there is work."""
    scaling = {"min_replicas": 2, "max_replicas": 8}
    towers = {"text": {"num_gpus": 0.5, "num_replicas": 3}, "vision": {"num_gpus": 1}}
    assert needed_gpus(AppConfig.model_validate(towers)) == 2.5
    towers["vision"]["scaling"] = scaling
    assert needed_gpus(AppConfig.model_validate(towers)) == 3.5


def test_the_holder_of_a_port_is_named(taken):
    """By its number and command; where nothing listens, nobody is."""
    assert f"process {os.getpid()} (" in holder(taken)
    assert "cannot see" in holder(free_port())
