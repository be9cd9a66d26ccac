"""Where spans go, by what the environment says; the spans themselves are in test_up.py."""

import os

import pytest

from deployments.errors import ServiceError
from serve_app import tracing


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No collector is named, and what the tests set is taken back."""
    for name in (*tracing.COLLECTORS, tracing.SHARE, tracing.EXPORTER):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_without_a_collector_spans_go_into_files():
    """Ray Serve's own exporter, for the share that was asked for."""
    assert "spans" in tracing.prepare(0.25)
    assert os.environ[tracing.EXPORTER] == tracing.FILES
    assert os.environ[tracing.SHARE] == "0.25"


def test_a_named_collector_gets_them(monkeypatch):
    """OpenTelemetry's own variable names it; Ray Serve finds the exporter by its path."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    monkeypatch.setattr(tracing, "_is_installed", lambda _: True)
    assert "http://collector:4318" in tracing.prepare(1)
    module, name = os.environ[tracing.EXPORTER].split(":")
    assert getattr(__import__(module, fromlist=[name]), name) is tracing.otlp


def test_a_collector_without_its_package_is_refused_with_the_command(monkeypatch):
    """Else each replica would fail to start, for a reason in its log."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:4318/v1/traces")
    monkeypatch.setattr(tracing, "OTLP", "no.such.package")
    with pytest.raises(ServiceError, match=r"jina-clip-serve\[tracing\]"):
        tracing.prepare(1)
    assert tracing.EXPORTER not in os.environ


def test_the_exporter_sends_in_batches():
    """What Ray Serve calls gives it a list of span processors, as it requires."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    (processor,) = tracing.otlp()
    assert isinstance(processor, BatchSpanProcessor)
    processor.shutdown()
