"""`jina-clip-serve bulk` and Ray: a cluster that is not there, and what Ray prints meanwhile."""

import pytest
import ray

from deployments.bulk import EmbedOptions
from deployments.errors import ServiceError
from serve_app.bulk import ray_running


def test_a_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """One message with the address, which the command turns into exit code 1."""

    def refuse(address: str, **_: object) -> None:
        raise ConnectionError("timed out")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    wanted = "no Ray cluster answers at ray://nowhere:1: timed out"
    with (
        pytest.raises(ServiceError, match=wanted),
        ray_running(EmbedOptions(text="text"), "ray://nowhere:1"),
    ):
        raise AssertionError("it was used")


def test_what_ray_prints_meanwhile_leaves_stdout_to_the_summary(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray tells of lost workers on stdout, where `--json` promises one document."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: print("a node was lost"))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with ray_running(EmbedOptions(text="text"), None):
        print("a worker was lost")
    print("the summary")
    said = capsys.readouterr()
    assert said.out == "the summary\n"
    assert said.err == "a node was lost\na worker was lost\n"
