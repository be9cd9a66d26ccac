"""`jina-clip-serve bulk --address`: a cluster that is not there."""

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
