"""What further clients put on the wire, replayed: NVIDIA, Azure, mteb, Elastic and the JDK.

As in `test_contracts`, the request as the client sends it. The JDK's own client is run.
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
