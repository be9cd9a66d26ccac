"""Where the spans of requests go; Ray Serve makes them, from ingress to tower, and passes them on.

Ray Serve reads its tracing settings from the environment of every process, so `prepare` runs
before Ray starts; on a cluster set the same variables on every node (serve_app/configs/faults.md).
"""

import importlib.util
import os
from typing import TYPE_CHECKING

from deployments.errors import ServiceError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

SHARE = "RAY_SERVE_TRACING_SAMPLING_RATIO"
EXPORTER = "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH"
COLLECTORS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
FILES = "ray.serve._private.tracing_utils:default_tracing_exporter"  # Ray Serve's own default
OTLP = "opentelemetry.exporter.otlp.proto.http"


def prepare(share: float) -> str:
    """Switch spans on for a share of the requests, and say in one sentence where they go.

    They go to the collector that OpenTelemetry's own variables name, or else into files beside
    Ray Serve's logs. A request whose `traceparent` header says that it is sampled is traced always.

    Raises:
        ServiceError: a collector is named, and the package that sends to it is missing.
    """
    os.environ[SHARE] = str(share)
    collector = next((os.environ[name] for name in COLLECTORS if name in os.environ), None)
    if collector is None:
        os.environ[EXPORTER] = FILES
        return f"Tracing {share:.0%} of the requests into logs/serve/spans of Ray's session folder."
    if not _is_installed(OTLP):
        raise ServiceError(
            f"to send spans to {collector} run pip install 'jina-clip-serve[tracing]'"
        )
    os.environ[EXPORTER] = f"{__name__}:otlp"
    return f"Tracing {share:.0%} of the requests, sent to {collector}."


def otlp() -> "list[SpanProcessor]":
    """Send spans in batches by OTLP over HTTP; called by Ray Serve in each of its processes."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return [BatchSpanProcessor(OTLPSpanExporter())]


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent of it
        return False
