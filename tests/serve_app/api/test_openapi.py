"""The OpenAPI document: valid, in step with the parser and with what the service answers."""

import json
import re

import pytest
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for

from deployments.config import AppConfig
from deployments.model.architecture import Architecture
from deployments.model.weights.source import DEMO
from serve_app.api import openapi
from serve_app.api.request import parse
from serve_app.api.served import Served


@pytest.fixture(scope="module")
def document(served):
    return openapi.document(served)


@pytest.fixture(scope="module")
def check(document):
    """A function that raises unless a value has the form of a component."""

    def check(value, name: str) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        Draft202012Validator(schema).validate(value)

    return check


def test_every_schema_is_itself_valid(document):
    """Each component is a JSON schema of the dialect of OpenAPI 3.1, and references resolve."""
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        assert "description" in schema or "anyOf" in schema
        validator_for(schema, Draft202012Validator).check_schema(schema)
    references = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document))
    assert set(references) <= set(schemas)
    assert document["openapi"] == "3.1.0"


def test_the_examples_are_taken_by_the_schema_and_by_the_parser(check, served):
    """What the document shows works."""
    for example in openapi.REQUEST_EXAMPLES.values():
        check(example["value"], "EmbeddingRequest")
        assert parse(json.dumps(example["value"]).encode(), served).items


def test_every_field_and_alias_of_the_parser_is_documented(document):
    """Nothing is taken that the document does not name."""
    properties = document["components"]["schemas"]["EmbeddingRequest"]["properties"]
    for first, *aliases in openapi.names().values():
        assert all(f"`{alias}`" in properties[first]["description"] for alias in aliases)
    assert properties.keys() == {first for first, *_ in openapi.names().values()}
    assert next(iter(properties)) == "input"


def test_answers_of_the_service_have_the_documented_form(service, check):
    """Rows in each encoding, partial failures, errors and the list of models."""
    kinds = ["float", "base64", "int8"]
    for extra in ({}, {"embedding_type": kinds}, {"errors": "partial"}):
        body = {"input": ["a", {"image": "bm8="}] if "errors" in extra else ["a"], **extra}
        check(service.post(body).json(), "EmbeddingList")
    check(service.post({"input": ["a"], "dimensions": 5000}).json(), "Fault")
    check(service.client.get("/nothing").json(), "Fault")
    check(service.client.get("/v1/models").json(), "ModelList")
    check(service.client.get("/ready").json(), "State")
    with pytest.raises(Exception, match="'detail' is a required"):
        check(service.client.get("/ready").json(), "Fault")


def test_every_code_of_an_error_is_listed_at_its_status(document):
    """The table of errors and the document agree."""
    answers = document["paths"]["/v1/embeddings"]["post"]["responses"]
    assert "INPUT_IMAGE_INVALID" in answers["400"]["description"]
    assert "CONFLICT_FINGERPRINT" in answers["409"]["description"]
    assert "RATE_REQUEST_LIMIT_EXCEEDED" in answers["429"]["description"]
    listed = {code for status in openapi.STATUSES for code in openapi.codes(status)}
    assert listed >= {answer.code for answer in openapi.TABLE.values()}


def test_keys_are_in_the_document_only_where_they_are_asked_for(document):
    """A server with keys declares the bearer scheme."""
    assert "security" not in document
    config = AppConfig.model_validate({"api_keys": ["one"]})
    with_keys = openapi.document(Served(config, Architecture.read(DEMO)))
    assert with_keys["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert "one" not in json.dumps(with_keys["security"])
