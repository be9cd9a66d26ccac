"""What further clients put on the wire, replayed; the JDK's own client is run.

As in `test_contracts`: NVIDIA, Azure, the JDK, mteb, Elastic, Open WebUI, Dify and LibreChat, as of
November 2026.
"""

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
def expected() -> dict[str, np.ndarray]:
    """The rows of two texts, as documents and as queries."""
    model = ClipModel.load()
    return {
        "texts": model.encode_text(TEXTS),
        "queries": model.encode_text(TEXTS, task="retrieval.query"),
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


@pytest.mark.parametrize(("task", "which"), [("passage", "texts"), ("query", "queries")])
def test_elastic_inference_jinaai(service, expected, task, which):
    """Ingest and search name a task; `late_chunking: false` goes along, and the width if set."""
    fields = {"embedding_type": "float", "task": f"retrieval.{task}", "late_chunking": False}
    near(service.embed(TEXTS, **fields), expected[which])
    near(
        service.embed([{"text": text} for text in TEXTS], dimensions=192, **fields), expected[which]
    )


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


def test_librechat_rag_api(openai_client, expected):
    """Texts, where it is told not to count tokens; token ids of another vocabulary are refused."""
    answer = openai_client.embeddings.create(model=MODEL, input=TEXTS)
    near([row.embedding for row in answer.data], expected["texts"])
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length"):
        openai_client.embeddings.create(model=MODEL, input=[[1, 2, 3]])
