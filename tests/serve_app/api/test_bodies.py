"""Any body at all: the parser refuses by its own errors only, and the service never gives a 5xx."""

import json
import warnings

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.model.errors import InputError
from serve_app.api import openapi
from serve_app.api.errors import INTERNAL, answer_to
from serve_app.api.request import parse

NAMES = [name for names in openapi.names().values() for name in names]
ITEM_KEYS = ["text", "image", "url", "bytes", "image_url", "image_base64", "type", "value", "pdf"]
WORDS = st.sampled_from(
    [
        *("", "a", "retrieval.query", "float", "binary", "image", "partial", "bulk", "token_ids"),
        *("data:image/png;base64,", "data:image/png;base64,iVBORw0KGgo=", "http://127.0.0.1/x.png"),
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | WORDS
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(ITEM_KEYS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
BODIES = st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, VALUES)) | st.dictionaries(
    st.text(max_size=8), VALUES, max_size=4
)
FEW = settings(
    max_examples=250,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def encoded(body) -> bytes:
    """Return JSON; with the standard library, what orjson would not write."""
    try:
        return orjson.dumps(body)
    except TypeError:  # lone surrogates, integers over 64 bits
        return json.dumps(body).encode()


def assert_no_fault(answer) -> None:
    """Fail on a 5xx, except a time limit that the request itself set and that ran out."""
    late = answer.status_code == 504 and answer.json()["code"] == "SERVICE_TIMEOUT"
    assert answer.status_code < 500 or late, answer.text


@settings(FEW, max_examples=1_000)
@given(BODIES | VALUES)
def test_the_parser_refuses_any_json_by_errors_of_its_own(served, body):
    """A thousand bodies: a request, or an error with a 4xx and a short message."""
    try:
        request = parse(encoded(body), served)
    except InputError as error:
        how, message = answer_to(error)
        assert 400 <= how.status < 500
        assert how is not INTERNAL
        assert len(message) < 1000
    else:
        assert request.encodings


@settings(FEW, max_examples=2_000)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_the_parser_refuses_any_bytes(served, body):
    """Bytes that are no JSON object are a RequestError."""
    try:
        parse(body, served)
    except InputError:
        return
    assert isinstance(json.loads(body), dict)


@FEW
@given(BODIES)
def test_the_service_answers_any_body(service, body):
    """Hundreds of bodies over HTTP: each is answered below 500 in JSON."""
    answer = service.client.post("/v1/embeddings", content=encoded(body))
    assert answer.json()
    assert_no_fault(answer)


def test_the_service_works_after_all_that(service):
    """A good request is answered."""
    assert len(service.embed(["still here"])) == 1


def test_schemathesis_finds_no_server_error(service):
    """Requests made from the service's own OpenAPI document, valid and not, give no 5xx."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library itself, at its import
        schemathesis = pytest.importorskip("schemathesis")
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        modes = schemathesis.GenerationMode
        strategy = st.one_of(
            operation.as_strategy(generation_mode=modes.POSITIVE),
            operation.as_strategy(generation_mode=modes.NEGATIVE),
        )

        @settings(FEW, max_examples=60)
        @given(strategy)
        def ask(case):
            nonlocal tried
            try:
                answer = case.call(base_url=service.url)
            except (httpx.InvalidURL, ValueError):  # made values that no client can send
                return
            tried += 1
            assert_no_fault(answer)

        ask()
    assert tried > 40
