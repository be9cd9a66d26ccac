"""Bad input gets a clear 4xx, and the next good request works."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from serve_app.gallery import FOLDER

CROSS = {"text": "still here"}


def jpeg(width: int, height: int) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


def image(data: bytes) -> dict[str, str]:
    return {"image": base64.b64encode(data).decode()}


BAD = {
    "truncated JPEG": ({"input": [CROSS, image(jpeg(200, 100)[:2000])]}, 400, "item 1"),
    "text file as image": ({"input": [image(b"I am a text file called .jpg")]}, 400, "item 0"),
    "not base64": ({"input": [{"image": "§§§"}]}, 400, "item 0"),
    "empty list": ({"input": []}, 400, "empty"),
    "no input": ({"model": "jina-clip-v2"}, 400, "input"),
    "10,000 items": ({"input": ["a"] * 10_000}, 400, "8,192"),
    "wrong task": ({"input": ["a"], "task": "classification"}, 422, "retrieval.query"),
    "dimensions 0": ({"input": ["a"], "dimensions": 0}, 422, "192"),
    "dimensions -1": ({"input": ["a"], "dimensions": -1}, 422, "192"),
    "dimensions 5000": ({"input": ["a"], "dimensions": 5000}, 422, "192"),
    "dimensions as text": ({"input": ["a"], "dimensions": "64"}, 422, "whole number"),
    "text over the limit": ({"input": ["b", "word " * 9000]}, 400, "item 1"),
    "endless text": ({"input": ["a" * 2_000_000]}, 400, "characters"),
    "private address": ({"input": [{"image": "http://127.0.0.1:80/x.png"}]}, 400, "item 0"),
    "metadata address": ({"input": [{"image": "http://169.254.169.254/"}]}, 400, "item 0"),
    "file URL": ({"input": [{"image": "file:///etc/passwd"}]}, 400, "item 0"),
    "number as item": ({"input": [1.5]}, 400, "item 0"),
    "text and image merged": ({"input": [{"text": "a", "image": "b"}]}, 400, "item 0"),
    "unknown encoding": ({"input": ["a"], "embedding_type": "hex"}, 422, "base64"),
    "unknown model": ({"input": ["a"], "model": "gpt"}, 400, "jina-clip-demo"),
    "bad flag": ({"input": ["a"], "normalized": "yes"}, 422, "normalized"),
    "late chunking": ({"input": ["a"], "late_chunking": True}, 422, "late_chunking"),
}


@pytest.mark.parametrize(("body", "status", "words"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_clearly(service, body, status, words):
    """The answer names the fault in both dialects, and the service goes on."""
    answer = service.post(body)
    assert answer.status_code == status, answer.text
    fault = answer.json()
    assert words in fault["detail"]
    assert fault["error"]["message"] == fault["detail"]
    assert fault["error"]["code"] == fault["code"]
    assert fault["request_id"] == answer.headers["x-request-id"]
    assert len(service.embed([CROSS])) == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b"\xff\xfe", 400), (b"[]", 400), (b'"text"', 400), (b"x" * 50_000_000, 413)],
    ids=["half JSON", "not UTF-8", "a list", "a string", "50 MB"],
)
def test_bodies_that_are_no_request_are_refused(service, body, status):
    """Rubbish and oversized bodies are answered, not dropped."""
    answer = service.client.post("/v1/embeddings", content=body)
    assert answer.status_code == status
    assert answer.json()["detail"]
    assert len(service.embed([CROSS])) == 1


def test_unknown_paths_and_methods_are_json_too(service):
    """404 and 405 have the shape of every other error."""
    for answer in (service.client.get("/nothing"), service.client.get("/v1/embeddings")):
        assert answer.status_code in (404, 405)
        assert answer.json()["code"] in ("NOT_FOUND", "METHOD_NOT_ALLOWED")


def test_an_image_of_one_pixel_gets_a_vector(service):
    """A 1x1 image is embedded like any other."""
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), "red").save(buffer, "PNG")
    assert len(service.embed([image(buffer.getvalue())])[0]) == 192


def test_the_clients_request_id_comes_back(service):
    """The id that the client sent is in the header and in the body of an error."""
    headers = {"x-request-id": "abc-123"}
    answer = service.client.post("/v1/embeddings", content=b"{", headers=headers)
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "abc-123"


def test_a_truncated_gallery_image_fails_alone(service):
    """A broken image names its own place, and a request without it works."""
    whole = (FOLDER / "bear.png").read_bytes()
    answer = service.post({"input": [image(whole), image(whole[:3000]), image(whole)]})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("item 1:")
    assert len(service.embed([image(whole), image(whole)])) == 2
