"""What each client puts on the wire, and how it reads the answer.

One test for each row of the table of clients: the request as the client sends it, the answer read
as its code reads it. Bases: LlamaIndex, LlamaIndexTS, LangChain, LangChain JS, Haystack, Weaviate,
Chroma, LiteLLM, Vercel's jina-ai-provider and the openai package, as of November 2026.
"""

import base64

import httpx
import numpy as np
import openai
import pytest

from deployments.model import ClipModel

TEXTS = ["red apple", "かわいい犬"]
MODEL = "jina-clip-v2"


@pytest.fixture(scope="module")
def expected(bear) -> dict[str, np.ndarray]:
    """The rows of two texts, of a query, and of an image."""
    model = ClipModel.load()
    return {
        "texts": model.encode_text(TEXTS),
        "query": model.encode_text(TEXTS[:1], task="retrieval.query"),
        "image": model.encode_image([bear]),
    }


@pytest.fixture(scope="module")
def b64(bear) -> str:
    return base64.b64encode(bear).decode()


@pytest.fixture(scope="module")
def data_uri(b64) -> str:
    return f"data:image/png;base64,{b64}"


def near(rows, *expected) -> None:
    np.testing.assert_allclose(np.array(rows, np.float32), np.concatenate(expected), atol=1e-5)


def by_index(answer: httpx.Response) -> list:
    """Read as LangChain, LlamaIndex, Chroma and Haystack's text embedders do."""
    body = answer.json()
    if "data" not in body:
        raise RuntimeError(body["detail"])
    return [row["embedding"] for row in sorted(body["data"], key=lambda row: row["index"])]


def by_position(answer: httpx.Response) -> list:
    """Read as Weaviate, Haystack's image embedder and the JavaScript clients do."""
    return [row["embedding"] for row in answer.json()["data"]]


def test_llama_index_python(service, expected, bear, b64):
    """`encoding_type`, a task, images as bytes or URL; bits through +128 and unpackbits."""
    body = {"input": TEXTS[:1], "model": MODEL, "encoding_type": "float"}
    body |= {"task": "retrieval.query"}
    headers = {"accept-encoding": "identity"}
    answer = service.client.post("/v1/embeddings", json=body, headers=headers)
    near(by_index(answer), expected["query"])
    images = [{"bytes": b64}, {"url": service.image_url("bear.png")}]
    answer = service.post({"input": images, "model": MODEL, "encoding_type": "float"})
    near(by_index(answer), expected["image"], expected["image"])
    answer = service.post({"input": TEXTS, "model": MODEL, "encoding_type": "binary"})
    bits = [np.unpackbits((np.array(row) + 128).astype("uint8")) for row in by_index(answer)]
    np.testing.assert_array_equal(np.array(bits), expected["texts"] > 0)
    answer = service.post({"input": TEXTS, "model": MODEL, "encoding_type": "ubinary"})
    bits = [np.unpackbits(np.array(row, dtype="uint8")) for row in by_index(answer)]
    np.testing.assert_array_equal(np.array(bits), expected["texts"] > 0)


def test_llama_index_ts(service, expected, b64):
    """Objects with text, url or bytes, and `late_chunking: false`."""
    body = {
        "model": MODEL,
        "encoding_type": "float",
        "task": "retrieval.passage",
        "dimensions": 192,
        "late_chunking": False,
        "input": [{"text": TEXTS[0]}, {"url": service.image_url("bear.png")}, {"bytes": b64}],
    }
    rows = by_position(service.post(body))
    near(rows, expected["texts"][:1], expected["image"], expected["image"])


def test_langchain_python(service, expected, b64):
    """Plain strings, or bytes and URLs; a refusal becomes a RuntimeError of its `detail`."""
    near(by_index(service.post({"input": TEXTS, "model": MODEL})), expected["texts"])
    images = [{"bytes": b64}, {"url": service.image_url("bear.png")}]
    answer = service.post({"input": images, "model": MODEL})
    near(by_index(answer), expected["image"], expected["image"])
    with pytest.raises(RuntimeError, match="not served"):
        by_index(service.post({"input": TEXTS, "model": "jina-embeddings-v2-base-en"}))


def test_langchain_js(service, expected):
    """Texts with `retrieval.passage`; its fixed 1,024 dimensions are refused with our width."""
    body = {"model": MODEL, "normalized": True, "task": "retrieval.passage", "input": TEXTS}
    near(by_position(service.post(body | {"dimensions": 192})), expected["texts"])
    refused = service.post(body | {"dimensions": 1024})
    assert refused.status_code == 422
    assert "192" in refused.json()["detail"]
    url = service.image_url("bear.png")  # the old client's plain URL: a text, never guessed at
    rows = by_position(service.post({"model": MODEL, "input": [url]}))
    assert np.abs(np.array(rows) - expected["image"]).max() > 0.1


def test_haystack(service, expected, data_uri):
    """Images as plain data URIs, five to a call, by position; texts need `model` and `usage`."""
    answer = service.post({"input": [data_uri] * 5, "model": MODEL, "dimensions": 192})
    near(by_position(answer), *[expected["image"]] * 5)
    answer = service.post({"input": TEXTS, "model": MODEL})
    near(by_index(answer), expected["texts"])
    body = answer.json()
    assert body["model"]
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] > 0


def test_weaviate(service, expected, b64):
    """Texts, then images, by position; a task of "" is none, and `detail` is a string."""
    body = {
        "model": MODEL,
        "normalized": True,
        "embedding_type": "float",
        "dimensions": 192,
        "task": "",
        "input": [*({"text": text} for text in TEXTS), {"image": b64}],
    }
    near(by_position(service.post(body)), expected["texts"], expected["image"])
    query = body | {"task": "retrieval.query", "input": [{"text": TEXTS[0]}]}
    near(by_position(service.post(query)), expected["query"])
    refused = service.post(body | {"input": [{"image": "AAAA"}]})
    assert isinstance(refused.json()["detail"], str)


def test_chroma(service, expected, b64):
    """Strings if all are texts, otherwise objects; every option is sent."""
    body = {
        "model": MODEL,
        "late_chunking": False,
        "truncate": False,
        "dimensions": 192,
        "embedding_type": "float",
        "normalized": True,
    }
    near(by_index(service.post(body | {"input": TEXTS})), expected["texts"])
    mixed = [{"text": TEXTS[0]}, {"image": b64}]
    answer = service.post(body | {"input": mixed})
    near(by_index(answer), expected["texts"][:1], expected["image"])


def test_litellm(service, expected, b64):
    """Data URIs come with their head stripped; the answer is read in OpenAI's form."""
    body = {"model": MODEL, "input": [{"image": b64}, {"text": TEXTS[0]}], "dimensions": 192}
    answer = service.post(body)
    near(by_position(answer), expected["image"], expected["texts"][:1])
    assert answer.json()["object"] == "list"
    assert all(row["object"] == "embedding" for row in answer.json()["data"])


def test_vercel(service, expected, b64):
    """Objects, `normalized: true`, `truncate: false`; rows must be arrays of numbers."""
    body = {"model": MODEL, "normalized": True, "truncate": False, "embedding_type": "float"}
    answer = service.post(body | {"input": [{"text": TEXTS[0]}, {"image": b64}]})
    rows = by_position(answer)
    assert all(isinstance(number, float) for row in rows for number in row)
    near(rows, expected["texts"][:1], expected["image"])
    refused = service.post(body | {"input": [{"text": 1}]}).json()
    assert refused["error"]["message"]


@pytest.fixture(scope="module")
def sdk(service):
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_openai_package_by_default_and_with_options(service, sdk, expected):
    """The official client asks for base64 by itself and decodes it; floats and a width work too."""
    asked = []
    with openai.OpenAI(
        base_url=f"{service.url}/v1",
        api_key="none",
        http_client=openai.DefaultHttpxClient(
            event_hooks={"request": [lambda request: asked.append(request.read())]}
        ),
    ) as client:
        answer = client.embeddings.create(model=MODEL, input=TEXTS)
    assert b'"encoding_format":"base64"' in asked[0].replace(b" ", b"")
    near([row.embedding for row in answer.data], expected["texts"])
    assert [row.index for row in answer.data] == [0, 1]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
    one = sdk.embeddings.create(model=MODEL, input=TEXTS[0], encoding_format="float", user="u")
    near([one.data[0].embedding], expected["texts"][:1])
    assert len(sdk.embeddings.create(model=MODEL, input="a", dimensions=64).data[0].embedding) == 64
    assert sdk.models.list().data[0].id == "jina-clip-demo"


def test_the_openai_package_raises_with_our_message(sdk):
    """Its exceptions carry status, message, code and parameter."""
    with pytest.raises(openai.UnprocessableEntityError, match="192") as refused:
        sdk.embeddings.create(model=MODEL, input="a", dimensions=4096)
    assert (refused.value.code, refused.value.param) == ("INPUT_OPTION_INVALID", "dimensions")
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        sdk.embeddings.create(model=MODEL, input=[[1, 2, 3]])
    with pytest.raises(openai.NotFoundError, match="Not Found"):
        sdk.chat.completions.create(model=MODEL, messages=[])


def test_the_openai_package_as_for_infinity(service, sdk, expected, data_uri):
    """`modality: image` makes plain URLs images."""
    answer = sdk.embeddings.create(
        model=MODEL,
        input=[service.image_url("bear.png"), data_uri],
        extra_body={"modality": "image"},
    )
    near([row.embedding for row in answer.data], expected["image"], expected["image"])


def test_the_openai_package_as_for_nv_clip(sdk, expected, data_uri):
    """Texts and data URIs in one list of strings."""
    answer = sdk.embeddings.create(model=MODEL, input=[TEXTS[0], data_uri])
    near([row.embedding for row in answer.data], expected["texts"][:1], expected["image"])
