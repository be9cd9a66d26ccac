"""What the running service answers beyond rows: bodies, headers, partial failures, fingerprints."""

import base64
import io
import json
import re

import numpy as np
import pyarrow as pa
import pytest

from deployments.model import ClipModel
from deployments.model.output import to_int8
from deployments.model.weights.source import DEMO

NPY = "application/x-npy"
ARROW = "application/vnd.apache.arrow.stream"


@pytest.fixture(scope="module")
def model() -> ClipModel:
    return ClipModel.load()


def ask(service, body, **headers):
    return service.client.post("/v1/embeddings", json=body, headers=headers)


def test_the_answer_names_the_replicas_that_computed_it(service, bear):
    """Those of the towers that a request used, one of each here; for a text known before none."""
    image = {"image": base64.b64encode(bear).decode()}
    asked = (["a new text"], [image], ["another new text", image])
    answers = [service.post({"input": items}) for items in asked]
    text, vision, both = (answer.headers["x-embedding-replicas"] for answer in answers)
    assert re.fullmatch(r"text:\w+", text)
    assert re.fullmatch(r"vision:\w+", vision)
    assert both == f"{text}, {vision}"
    again = service.post({"input": asked[2]})
    assert again.headers["x-embedding-replicas"] == vision
    assert again.headers["x-embedding-fingerprint"].startswith("text:")


def test_npy_and_arrow_bodies_hold_the_rows(service, model):
    """The matrix comes as .npy or as an Arrow stream, with its usage in a header."""
    expected = model.encode_text(["red apple", "house"])
    body = {"input": ["red apple", "house"]}
    answer = ask(service, body, accept=NPY)
    assert answer.headers["content-type"] == NPY
    np.testing.assert_allclose(np.load(io.BytesIO(answer.content)), expected, atol=1e-5)
    usage = json.loads(answer.headers["x-embedding-usage"])
    assert usage == service.post(body).json()["usage"]
    answer = ask(service, body, accept=ARROW)
    table = pa.ipc.open_stream(answer.content).read_all()
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy()), expected, atol=1e-5)
    answer = ask(service, body | {"embedding_type": "int8"}, accept=NPY)
    numbers = np.load(io.BytesIO(answer.content)).astype(int)
    assert np.abs(numbers - to_int8(expected)[0]).max() <= 1


def test_a_width_is_normalised_in_every_encoding(service, model):
    """Cut to 64, each encoding is that of the cut and normalised row."""
    expected = model.encode_text(["red apple"], dimensions=64)[0]
    kinds = ["float", "base64", "ubinary", "int8"]
    (row,) = service.embed(["red apple"], dimensions=64, embedding_type=kinds)
    np.testing.assert_allclose(row["float"], expected, atol=1e-5)
    raw = np.frombuffer(base64.b64decode(row["base64"]), "<f4")
    np.testing.assert_allclose(raw, expected, atol=1e-5)
    assert row["ubinary"] == np.packbits(expected > 0).tolist()
    assert len(row["int8"]) == 64


def test_usage_prices_an_image_as_the_tokens_of_its_tower(service, model, bear):
    """By default an image counts as its patches and the CLS token."""
    price = model.architecture.vision.num_tokens
    image = {"image": base64.b64encode(bear).decode()}
    usage = service.post({"input": ["red apple", image, image]}).json()["usage"]
    tokens = len(model.tokenizer.encode(["red apple"])[0])
    assert usage["image_tokens"] == 2 * price
    assert usage["total_tokens"] == usage["prompt_tokens"] == tokens + 2 * price


def test_partial_answers_give_the_good_rows_and_name_the_bad_items(service, model, bear):
    """Broken image, refused address, endless text: null each, and their neighbours are right."""
    items = [
        "red apple",
        {"image": "bm90IGEgcGljdHVyZQ=="},
        {"image": base64.b64encode(bear).decode()},
        "word " * 9000,
        {"image": "http://127.0.0.1:80/x.png"},
        {"image": base64.b64encode(bear[:3000]).decode()},
        "house",
    ]
    answer = service.post({"input": items, "errors": "partial"})
    assert answer.status_code == 200
    body = answer.json()
    assert [(fault["index"], fault["code"]) for fault in body["errors"]] == [
        (1, "INPUT_IMAGE_INVALID"),
        (3, "INPUT_TOKEN_LIMIT_EXCEEDED"),
        (4, "INPUT_IMAGE_UNAVAILABLE"),
        (5, "INPUT_IMAGE_INVALID"),
    ]
    rows = [row["embedding"] for row in body["data"]]
    assert [row is None for row in rows] == [False, True, False, True, True, True, False]
    np.testing.assert_allclose(
        [rows[0], rows[6]], model.encode_text(["red apple", "house"]), atol=1e-5
    )
    np.testing.assert_allclose(rows[2], model.encode_image([bear])[0], atol=1e-5)
    assert service.post({"input": items}).status_code == 400
    good = service.post({"input": ["red apple"], "errors": "partial"}).json()
    assert "errors" not in good


def test_a_handle_gives_failures_as_errors(service):
    """By handle the failures are the typed errors themselves."""
    items = ["a", {"image": b"no image"}]
    answer = service.handle.embed.remote(items, partial=True).result()
    assert list(answer.failures) == [1]
    assert "not a readable image" in str(answer.failures[1])
    assert not answer.embeddings[1].any()
    assert answer.embeddings[0].any()


def test_token_ids_of_the_models_own_tokenizer_give_the_texts_rows(service, model):
    """With and without the special tokens, and with the query prefix."""
    texts = ["red apple", "かわいい犬がいる"]
    whole = [ids.tolist() for ids in model.tokenizer.encode(texts)]
    bare = [ids[1:-1] for ids in whole]
    for task in (None, "retrieval.query"):
        expected = model.encode_text(texts, task=task)
        for sent in (whole, bare):
            rows = service.embed(sent, input_type="token_ids", task=task)
            np.testing.assert_allclose(rows, expected, atol=1e-5)
    np.testing.assert_allclose(
        service.embed(whole[0], input_type="token_ids")[0],
        model.encode_text(texts[:1])[0],
        atol=1e-5,
    )
    refused = service.post({"input": [[10**9]], "input_type": "token_ids"})
    assert refused.status_code == 400
    assert "vocabulary" in refused.json()["detail"] or "go from" in refused.json()["detail"]


def test_server_timing_says_where_the_time_went(service):
    """The parts of the request that took place are named, in milliseconds."""
    answer = service.post({"input": ["a", {"image": service.image_url("bear.png")}]})
    header = answer.headers["server-timing"]
    parts = dict(re.findall(r"(\w+);dur=([\d.]+)", header))
    assert {"parse", "tokenise", "fetch", "towers", "render"} <= set(parts)
    assert all(float(value) >= 0 for value in parts.values())
    assert float(parts["towers"]) > 0
    assert "fetch" not in service.post({"input": ["a"]}).headers["server-timing"]


def test_a_fingerprint_may_be_demanded(service):
    """Each answer carries that of the towers used; another one is refused with 409."""
    body = {"input": ["a"]}
    text = service.post(body).headers["x-embedding-fingerprint"]
    assert re.fullmatch(r"text:[0-9a-f]{16}", text)
    listed = service.client.get("/v1/models").json()["data"][0]["fingerprints"]
    assert text == f"text:{listed['text']}"
    both = f"{text} vision:{listed['vision']}"
    same = ask(service, body, **{"x-embedding-fingerprint": both})
    assert same.status_code == 200
    other = ask(service, body, **{"x-embedding-fingerprint": "text:0123456789abcdef"})
    assert other.status_code == 409
    assert other.json()["code"] == "CONFLICT_FINGERPRINT"
    unused = ask(service, body, **{"x-embedding-fingerprint": "vision:0123456789abcdef"})
    assert unused.status_code == 200
    nonsense = ask(service, body, **{"x-embedding-fingerprint": "abc"})
    assert nonsense.status_code == 400


def test_models_lists_limits_and_widths(service):
    """The entry says what a request may hold and how answers may be written."""
    (entry,) = service.client.get("/v1/models").json()["data"]
    config = json.loads((DEMO / "config.json").read_text())
    assert entry["dimensions"] == 192
    assert entry["matryoshka_dimensions"] == config["matryoshka_dimensions"]
    assert entry["limits"]["max_items_per_request"] == 8192
    assert entry["limits"]["max_tokens_per_text"] == 8192
    assert entry["modalities"] == ["text", "image"]
    assert "ubinary" in entry["embedding_types"]


def test_a_refused_field_is_named_in_both_dialects(service):
    """422 carries Jina's list of fields, and OpenAI's parameter, under the name that was sent."""
    fault = service.post({"input": ["a"], "output_dimension": 5000}).json()
    assert fault["errors"] == [
        {
            "field": "body -> output_dimension",
            "message": fault["detail"],
            "type": "less_than_equal",
            "input": 5000,
        }
    ]
    assert fault["error"]["param"] == "output_dimension"
    assert fault["error"]["type"] == "invalid_request_error"


def test_a_request_that_runs_out_of_time_is_answered_with_504(service):
    """The time limit of a request holds, and its answer has the shape of every other error."""
    answer = service.post({"input": ["word " * 500], "timeout_s": 0.001})
    assert answer.status_code == 504
    fault = answer.json()
    assert fault["code"] == "SERVICE_TIMEOUT"
    assert fault["error"]["type"] == "server_error"
    assert ask(service, {"input": ["a"]}, **{"x-timeout-s": "soon"}).status_code == 422
