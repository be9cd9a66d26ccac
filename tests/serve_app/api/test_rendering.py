"""How rows are written: encodings and body types."""

import base64
import io
import json
import sys

import numpy as np
import pyarrow as pa
import pytest

from deployments.errors import RequestError
from deployments.messages import Embeddings, Usage
from deployments.model.errors import ImageError
from deployments.model.output import to_binary, to_int8, to_ubinary
from serve_app.api import arrow
from serve_app.api.rendering import ENCODINGS, JSON, NPY, Form, negotiate, render


@pytest.fixture
def answer() -> Embeddings:
    rows = np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)
    return Embeddings(rows, Usage(5, 2))


@pytest.fixture
def broken(answer) -> Embeddings:
    """An answer whose second item failed."""
    answer.embeddings[1] = 0
    return Embeddings(answer.embeddings, answer.usage, {1: ImageError("not an image")})


def form(*encodings: str, media_type: str = JSON) -> Form:
    return Form(encodings, "m", 100, media_type)  # type: ignore[arg-type]


def read_table(stream: bytes) -> pa.Table:
    return pa.ipc.open_stream(stream).read_all()


def rendered(answer: Embeddings, *encodings: str) -> dict:
    return json.loads(render(answer, form(*encodings)))


def embeddings(answer: Embeddings, *encodings: str) -> list:
    return [row["embedding"] for row in rendered(answer, *encodings)["data"]]


def test_the_published_example_of_bits_comes_out():
    """Jina's documentation pairs ubinary 50, 193, 128, 255 with binary -78, 65, 0, 127."""
    bits = np.unpackbits(np.array([[50, 193, 128, 255]], dtype=np.uint8), axis=1)
    rows = np.where(bits == 1, 0.5, -0.5).astype(np.float32)
    assert to_ubinary(rows).tolist() == [[50, 193, 128, 255]]
    assert to_binary(rows).tolist() == [[-78, 65, 0, 127]]
    assert to_ubinary(np.zeros((1, 8), np.float32)).tolist() == [[0]]  # 0 is not positive


def test_int8_times_its_scale_is_the_row_within_half_a_step():
    """The largest value is 127, the error is bounded, and a row of zeros stays zero."""
    rows = np.random.default_rng(2).normal(size=(50, 96)).astype(np.float32)
    rows[7] = 0
    numbers, scales = to_int8(rows)
    assert numbers.dtype == np.int8
    assert np.abs(numbers).max(axis=1).tolist() == [127] * 7 + [0] + [127] * 42
    error = np.abs(numbers * scales[:, None] - rows).max(axis=1)
    assert (error <= scales / 2 * 1.0001).all()
    lengths = np.linalg.norm(numbers, axis=1) * np.linalg.norm(rows, axis=1)
    cosines = (numbers * rows).sum(axis=1)[lengths > 0] / lengths[lengths > 0]
    assert cosines.min() > 0.9999


def test_floats_and_base64_carry_the_same_float32_numbers(answer):
    """JSON floats read back to the very float32; base64 is little-endian float32."""
    floats = np.array(embeddings(answer, "float"), dtype=np.float32)
    raw = [np.frombuffer(base64.b64decode(r), "<f4") for r in embeddings(answer, "base64")]
    np.testing.assert_array_equal(floats, answer.embeddings)
    np.testing.assert_array_equal(np.array(raw), answer.embeddings)


def test_integers_are_written_as_the_encoder_gives_them(answer):
    """The JSON of each integer encoding holds its numbers, int8 with the scale of each row."""
    assert embeddings(answer, "ubinary") == to_ubinary(answer.embeddings).tolist()
    assert embeddings(answer, "binary") == to_binary(answer.embeddings).tolist()
    numbers, scales = to_int8(answer.embeddings)
    assert embeddings(answer, "int8") == numbers.tolist()
    found = [row["int8_scale"] for row in rendered(answer, "int8")["data"]]
    assert np.array(found, np.float32).tolist() == scales.tolist()


def test_several_encodings_give_an_object_by_name(answer):
    """Each value of the object is what that encoding alone gives."""
    for index, row in enumerate(embeddings(answer, *ENCODINGS)):
        assert list(row) == list(ENCODINGS)
        assert all(row[name] == embeddings(answer, name)[index] for name in ENCODINGS)


def test_a_large_answer_is_written_in_parts_that_join(answer):
    """Rows beyond what is encoded at once keep their order and their index."""
    rows = np.random.default_rng(3).normal(size=(700, 256)).astype(np.float32)
    data = rendered(Embeddings(rows, Usage(1, 0)), "float")["data"]
    assert [row["index"] for row in data] == list(range(700))
    np.testing.assert_array_equal(np.array([r["embedding"] for r in data], np.float32), rows)


def test_usage_counts_an_image_at_its_price(answer):
    """Tokens of texts, and 100 for each of two images here."""
    body = rendered(answer, "float")
    assert list(body) == ["model", "object", "usage", "data"]  # the order of Jina's API
    assert body["usage"] == {
        "total_tokens": 205,
        "prompt_tokens": 205,
        "image_tokens": 200,
        "images": 2,
    }


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_failed_items_are_null_in_json(broken, encoding):
    """The failed item has no vector, its neighbours have theirs, and `errors` says why."""
    body = rendered(broken, encoding)
    assert [row["embedding"] is None for row in body["data"]] == [False, True, False]
    assert body["errors"] == [
        {"index": 1, "code": "INPUT_IMAGE_INVALID", "message": "not an image"}
    ]


@pytest.mark.parametrize(
    ("encoding", "dtype", "width"),
    [
        ("float", "<f4", 64),
        ("base64", "<f4", 64),
        ("binary", "int8", 8),
        ("ubinary", "uint8", 8),
        ("int8", "int8", 64),
    ],
)
def test_npy_and_arrow_hold_the_matrix(answer, encoding, dtype, width):
    """Both give the matrix of the encoding, with its type."""
    matrix = np.load(io.BytesIO(render(answer, form(encoding, media_type=NPY))))
    assert matrix.dtype == np.dtype(dtype)
    assert matrix.shape == (3, width)
    table = pa.ipc.open_stream(
        render(answer, form(encoding, media_type=arrow.MEDIA_TYPE))
    ).read_all()
    assert table["index"].to_pylist() == [0, 1, 2]
    np.testing.assert_array_equal(np.stack(table["embedding"].to_numpy()), matrix)
    facts = json.loads(table.schema.metadata[arrow.FACTS])
    assert facts["usage"]["total_tokens"] == 205
    if encoding == "float":
        np.testing.assert_array_equal(matrix, answer.embeddings)
    if encoding == "int8":
        scales = table["int8_scale"].to_numpy()
        np.testing.assert_array_equal(scales, to_int8(answer.embeddings)[1])


def test_arrow_has_nulls_for_failed_items_and_npy_refuses_them(broken):
    """Arrow says what failed; .npy cannot, so it is refused instead of giving zeros."""
    table = pa.ipc.open_stream(
        render(broken, form("float", media_type=arrow.MEDIA_TYPE))
    ).read_all()
    assert table["embedding"].is_null().to_pylist() == [False, True, False]
    assert table["error"].to_pylist() == [None, "INPUT_IMAGE_INVALID: not an image", None]
    with pytest.raises(RequestError, match="accept JSON"):
        render(broken, form("float", media_type=NPY))


def test_one_matrix_cannot_hold_several_encodings():
    """The bare bodies are refused for more than one encoding, before anything is embedded."""
    for media_type in (NPY, arrow.MEDIA_TYPE):
        with pytest.raises(
            RequestError, match=f"{media_type} holds one matrix, not float and int8; ask for"
        ):
            form("float", "int8", media_type=media_type)
    form("float", "int8", media_type=JSON)


def test_without_pyarrow_the_answer_says_what_to_install(monkeypatch):
    """A server without the optional library refuses clearly, before anything is embedded."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(RequestError, match=r"jina-clip-serve\[arrow\]"):
        negotiate(arrow.MEDIA_TYPE)


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("text/html,application/xhtml+xml,*/*;q=0.8", JSON),
        ("application/x-npy", NPY),
        ("Application/X-NPY; q=0.9", NPY),
        ("application/json, application/x-npy;q=0.5", JSON),
        ("application/json;q=0.1, application/x-npy", NPY),
        ("application/vnd.apache.arrow.stream", arrow.MEDIA_TYPE),
        ("application/x-npy;q=nonsense", JSON),
    ],
)
def test_the_accept_header_chooses_the_body(accept, media_type):
    """The preferred of our types is taken, JSON where none is named."""
    assert negotiate(accept) == media_type
