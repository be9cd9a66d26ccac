"""What further clients put on the wire, replayed; the JDK's own client is run.

As in `test_contracts`: NVIDIA, Azure, the JDK, mteb, Elastic, Open WebUI, Dify, LibreChat and
Frigate, as of November 2026.
"""

import base64
import shutil
import subprocess

import numpy as np
import openai
import pytest

from deployments.model import ClipModel

TEXTS = ["red apple", "かわいい犬"]
MODEL = "jina-clip-v2"
JAVA = """
import java.net.URI;
import java.net.http.*;
public class Call {
  public static void main(String[] args) throws Exception {
    var body = HttpRequest.BodyPublishers.ofString(args[1]);
    var request = HttpRequest.newBuilder(URI.create(args[0])).POST(body)
      .header("Content-Type", "application/json").build();
    var answer = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
    System.out.print(answer.statusCode());
  }
}
"""


@pytest.fixture(scope="module")
def expected(bear) -> dict[str, np.ndarray]:
    """The rows of two texts, as documents and as queries, and of an image."""
    model = ClipModel.load()
    return {
        "texts": model.encode_text(TEXTS),
        "queries": model.encode_text(TEXTS, task="retrieval.query"),
        "image": model.encode_image([bear]),
    }


def near(rows, expected) -> None:
    np.testing.assert_allclose(np.array(rows, np.float32), expected, atol=1e-5)


@pytest.mark.parametrize(("kind", "which"), [("passage", "texts"), ("query", "queries")])
def test_nvidia_ai_endpoints(service, expected, kind, which):
    """`truncate: "NONE"` and `input_type` with every request."""
    fields = {"encoding_format": "float", "truncate": "NONE", "input_type": kind}
    near(service.embed(TEXTS, **fields), expected[which])


def test_azure_openai(service, expected):
    """The official client with Azure's path, key header and api-version."""
    with openai.AzureOpenAI(
        azure_endpoint=service.url, api_key="k", api_version="2024-10-21", max_retries=0
    ) as client:
        answer = client.embeddings.create(model=MODEL, input=TEXTS)
    near([row.embedding for row in answer.data], expected["texts"])


def test_the_jdks_own_client(service, tmp_path):
    """It offers h2c with every request over plain HTTP."""
    if shutil.which("java") is None or shutil.which("javac") is None:
        pytest.skip("no JDK here; Debian: apt-get install default-jdk-headless")
    source = tmp_path / "Call.java"
    source.write_text(JAVA)
    body = '{"model": "jina-clip-v2", "input": ["red apple"]}'
    done = subprocess.run(
        ["java", str(source), f"{service.url}/v1/embeddings", body],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout == "200"


@pytest.fixture
def openai_client(service):
    """The official client, as mteb's wrapper and LibreChat's rag_api make it."""
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="k", max_retries=0) as client:
        yield client


def test_mteb_openai_wrapper(openai_client, expected):
    """`encoding_format: "float"` and the width with every batch; rows by position."""
    answer = openai_client.embeddings.create(
        model=MODEL, input=TEXTS, encoding_format="float", dimensions=192
    )
    near([row.embedding for row in answer.data], expected["texts"])


def test_mteb_openai_endpoint_wrapper(service, expected):
    """The longest text is read from the models; then longer ones are cut; rows by index."""
    (entry,) = service.client.get("/v1/models").json()["data"]
    assert entry["max_model_len"] == 8192
    body = {"model": entry["id"], "encoding_format": "float"}
    texts = [TEXTS[0], TEXTS[1] + " word" * 9000]
    assert service.post({**body, "input": texts}).status_code == 400
    cut = {"truncate_prompt_tokens": entry["max_model_len"]}
    answer = service.post({**body, **cut, "input": texts}).raise_for_status().json()
    near([row["embedding"] for row in answer["data"] if row["index"] == 0], expected["texts"][:1])
    refused = service.post({**body, "input": TEXTS, "truncate_prompt_tokens": 512})
    assert (refused.status_code, refused.json()["error"]["param"]) == (
        422,
        "truncate_prompt_tokens",
    )


@pytest.mark.parametrize(("task", "which"), [("passage", "texts"), ("query", "queries")])
def test_elastic_inference_jinaai(service, expected, task, which):
    """Ingest and search name a task; `late_chunking: false` goes along, and the width if set."""
    fields = {"embedding_type": "float", "task": f"retrieval.{task}", "late_chunking": False}
    near(service.embed(TEXTS, **fields), expected[which])
    near(
        service.embed([{"text": text} for text in TEXTS], dimensions=192, **fields), expected[which]
    )


def test_elastic_inference_jinaai_for_images(service, expected, bear):
    """A multimodal service sends objects, images as data URIs, and no task with documents."""
    uri = f"data:image/png;base64,{base64.b64encode(bear).decode()}"
    rows = service.embed([{"image": uri}, {"text": TEXTS[0]}], embedding_type="float")
    near(rows, np.concatenate([expected["image"], expected["texts"][:1]]))


@pytest.mark.parametrize("base", ["/v1", ""])
def test_open_webui(service, expected, base):
    """Only model and input, with headers about its user; rows by position."""
    headers = {
        "Authorization": "Bearer k",
        "X-OpenWebUI-User-Name": "n",
        "X-OpenWebUI-User-Id": "1",
    }
    body = {"input": TEXTS, "model": MODEL}
    answer = service.client.post(f"{base}/embeddings", json=body, headers=headers)
    answer.raise_for_status()
    near([row["embedding"] for row in answer.json()["data"]], expected["texts"])


def test_dify(service, expected):
    """The base URL may end in a slash; reads `usage.total_tokens`, and `detail` of an error."""
    answer = service.post({"model": MODEL, "input": TEXTS})
    assert answer.json()["usage"]["total_tokens"] > 0
    near([[float(x) for x in row["embedding"]] for row in answer.json()["data"]], expected["texts"])
    assert isinstance(service.post({"model": "other", "input": ["ping"]}).json()["detail"], str)


def test_dify_with_images(service, expected, bear):
    """Objects of plain base64, and the task of a document."""
    items = [{"image": base64.b64encode(bear).decode()}, {"text": TEXTS[0]}]
    rows = service.embed(items, task="retrieval.passage")
    near(rows, np.concatenate([expected["image"], expected["texts"][:1]]))


def test_librechat_rag_api(openai_client, expected):
    """Texts, where it is told not to count tokens; token ids of another vocabulary are refused."""
    answer = openai_client.embeddings.create(model=MODEL, input=TEXTS)
    near([row.embedding for row in answer.data], expected["texts"])
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length"):
        openai_client.embeddings.create(model=MODEL, input=[[1, 2, 3]])


def test_frigate_semantic_search_by_its_llama_cpp_provider(service, expected, bear):
    """It looks its model up by id or alias, asks without /v1, and reads the rows by position."""
    (entry,) = service.client.get("/v1/models").json()["data"]
    assert MODEL in {entry["id"], *entry["aliases"]}
    assert service.client.get("/props", params={"model": MODEL}).status_code == 404  # borne there
    image = base64.b64encode(bear).decode()
    content = [{"prompt_string": text} for text in TEXTS]
    content.append({"prompt_string": "<__media__>\n", "multimodal_data": [image]})
    answer = service.client.post("/embeddings", json={"model": MODEL, "content": content})
    rows = [item["embedding"] for item in answer.raise_for_status().json()["data"]]
    near(rows, np.concatenate([expected["texts"], expected["image"]]))


def test_frigate_and_others_as_of_clip_as_service(service, expected, bear):
    """`POST /post` with `data`: texts, encoded images and their addresses."""
    image = base64.b64encode(bear).decode()
    data = [{"text": TEXTS[0]}, {"blob": image}, {"uri": service.image_url("bear.png")}]
    answer = service.client.post("/post", json={"data": data, "exec_endpoint": "/"})
    rows = [item["embedding"] for item in answer.raise_for_status().json()["data"]]
    near(rows, np.concatenate([expected["texts"][:1], expected["image"], expected["image"]]))
