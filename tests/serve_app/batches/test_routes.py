"""Files and batches over the routes, by the official client; the Router is a stand-in."""

import json
from collections.abc import Iterator

import pytest
from openai import BadRequestError, NotFoundError, OpenAI, UnprocessableEntityError
from starlette.testclient import TestClient

from deployments.config import AppConfig
from serve_app.api import ingress
from serve_app.batches.asking import ask
from serve_app.batches.objects import Batch
from tests.serve_app.api.stand_in import StandIn
from tests.serve_app.batches.told import line

KEYS = "one", "two"


@pytest.fixture
def served(tmp_path, monkeypatch) -> Iterator[TestClient]:
    batches = {"folder": str(tmp_path / "kept"), "max_file_bytes": 20_000}
    config = AppConfig.model_validate({"api_keys": KEYS, "batches": batches})
    router = StandIn(config)
    with TestClient(ingress.http_app(config, lambda: router)) as http:
        http.stand_in = router  # type: ignore[attr-defined]
        yield http


def client_of(http: TestClient, key: str = "one") -> OpenAI:
    return OpenAI(api_key=key, base_url="http://testserver/v1", http_client=http, max_retries=0)


def uploaded(client: OpenAI, *lines: str):
    data = "".join(f"{text}\n" for text in lines).encode()
    return client.files.create(file=("in.jsonl", data), purpose="batch")


def finished(client: OpenAI, file_id: str, endpoint="/v1/embeddings"):
    batch = client.batches.create(
        input_file_id=file_id, endpoint=endpoint, completion_window="24h", metadata={"of": "mine"}
    )
    while batch.status in ("validating", "in_progress", "finalizing"):
        batch = client.batches.retrieve(batch.id)
    return batch


def test_the_official_client_has_its_lines_answered(served):
    """Each as POST /v1/embeddings answers its body; what is refused is in the file of errors."""
    client = client_of(served)
    file = uploaded(client, line(1), line(2, body={"input": ["x"], "dimensions": 0}), line(3))
    assert (file.filename, file.purpose) == ("in.jsonl", "batch")
    assert client.files.content(file.id).read().count(b"\n") == 3
    batch = finished(client, file.id)
    assert (batch.status, batch.metadata) == ("completed", {"of": "mine"})
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (3, 2, 1)
    good = [json.loads(x) for x in client.files.content(batch.output_file_id).text.splitlines()]
    assert {x["custom_id"] for x in good} == {"r1", "r3"}
    direct = served.post(
        "/v1/embeddings", json={"input": ["text 1"]}, headers={"authorization": "Bearer one"}
    )
    assert good[0]["response"]["body"] == direct.json()
    (bad,) = [json.loads(x) for x in client.files.content(batch.error_file_id).text.splitlines()]
    assert (bad["custom_id"], bad["response"]["status_code"]) == ("r2", 422)
    assert "dimensions" in bad["response"]["body"]["detail"]
    assert bad["response"]["body"]["request_id"] == bad["response"]["request_id"]


def test_work_of_a_batch_is_bulk_work(served):
    """Whatever the key's own lane is."""
    client, router = client_of(served), served.stand_in
    finished(client, uploaded(client, line(1)).id)
    (asked,) = router.asked
    assert asked[5] == "bulk"


def test_lists_go_page_by_page_and_files_can_be_deleted(served):
    """The latest first."""
    client = client_of(served)
    ids = [uploaded(client, line(number)).id for number in range(3)]
    assert {file.id for file in client.files.list(limit=1)} == set(ids)  # three pages
    assert client.files.delete(ids[0]).deleted
    with pytest.raises(NotFoundError):
        client.files.retrieve(ids[0])
    batches = [finished(client, ids[1]).id for _ in range(2)]
    assert {batch.id for batch in client.batches.list(limit=1)} == set(batches)
    assert len(list(client.files.list(purpose="batch"))) == 2


def test_another_key_finds_nothing(served):
    """Not even that it is there."""
    mine, other = client_of(served), client_of(served, "two")
    file = uploaded(mine, line(1))
    batch = finished(mine, file.id)
    calls = (
        lambda: other.files.retrieve(file.id),
        lambda: other.files.content(file.id),
        lambda: other.files.delete(file.id),
        lambda: other.batches.retrieve(batch.id),
        lambda: other.batches.cancel(batch.id),
        lambda: finished(other, file.id),
    )
    for call in calls:
        with pytest.raises(NotFoundError):
            call()
    assert list(other.files.list()) == list(other.batches.list()) == []
    assert mine.files.retrieve(file.id).id == file.id


def test_what_cannot_be_is_refused(served):
    """With the field or the limit."""
    client = client_of(served)
    file = uploaded(client, line(1))
    with pytest.raises(UnprocessableEntityError, match="completion_window"):
        client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/embeddings",
            completion_window="1h",  # type: ignore[arg-type]
        )
    with pytest.raises(UnprocessableEntityError, match="endpoint"):
        finished(client, file.id, "/v1/chat/completions")
    with pytest.raises(UnprocessableEntityError, match="only 'batch'"):
        client.files.create(file=b"{}", purpose="assistants")
    with pytest.raises(BadRequestError, match="multipart"):
        client.post("/files", body={"purpose": "batch"}, cast_to=object)
    with pytest.raises(UnprocessableEntityError, match="not in the list"):
        client.files.list(after="file-" + "0" * 24)
    answer = served.post(
        "/v1/files", content=b"x" * 30_000, headers=multipart() | {"authorization": "Bearer one"}
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "INPUT_BODY_TOO_LARGE")
    assert served.get("/v1/files").status_code == 401


@pytest.mark.parametrize("limit", ["0", "1e3", "", "10001", "0" * 8 + "1" + "9" * 5000])
def test_a_limit_that_is_none_is_refused(served, limit):
    """A number of thousands of digits too, of which Python reads none."""
    headers = {"authorization": "Bearer one"}
    answer = served.get("/v1/files", params={"limit": limit}, headers=headers)
    assert answer.status_code == 422
    assert "send 1 to 10,000" in answer.json()["detail"]


def test_a_file_without_a_purpose_is_told_to_send_one(served):
    """The client's field was forgotten, so no value of it is quoted."""
    headers = {"authorization": "Bearer one"}
    answer = served.post("/v1/files", files={"file": ("in.jsonl", b"{}")}, headers=headers)
    assert answer.json()["detail"] == "the field 'purpose' is missing; send 'batch'"


def multipart() -> dict[str, str]:
    return {"content-type": "multipart/form-data; boundary=b"}


async def test_lines_of_a_key_that_is_gone_are_refused_as_over_http(served):
    """In the form of every other error."""
    batch = Batch(
        id="batch_" + "0" * 24,
        owner="f" * 64,
        created_at=0,
        endpoint="/v1/embeddings",
        input_file_id="file-" + "0" * 24,
        expires_at=1,
    )
    answer = await ask(served.app, served.app.state.keys.of(batch.owner), batch, b"{}")
    fault = json.loads(answer.body)
    over_http = served.post("/v1/embeddings", json={}).json()
    assert (answer.status, fault["code"]) == (401, "AUTH_INVALID_API_KEY")
    assert fault.keys() == over_http.keys()
    assert fault["error"].keys() == over_http["error"].keys()


def test_an_end_is_said_and_a_batch_that_is_over_stays_so(served):
    """Cancelling twice does no harm."""
    client = client_of(served)
    batch = finished(client, uploaded(client, line(1)).id)
    assert client.batches.cancel(batch.id).status == "completed"


def test_without_a_folder_it_is_said_what_to_set():
    """The rest of the API is there."""
    router = StandIn(AppConfig())
    with TestClient(ingress.http_app(router.config, lambda: router)) as http:
        answer = http.get("/v1/batches")
    assert answer.status_code == 404
    assert "batches.folder" in answer.json()["detail"]


def test_the_document_has_the_operations_where_there_is_a_folder(served):
    """The owner's digest is nobody's business."""
    document = served.get("/openapi.json").json()
    assert {"/v1/files", "/v1/files/{name}/content", "/v1/batches/{name}/cancel"} <= set(
        document["paths"]
    )
    assert "owner" not in document["components"]["schemas"]["Batch"]["properties"]
    router = StandIn(AppConfig())
    with TestClient(ingress.http_app(router.config, lambda: router)) as http:
        assert not any("batch" in path for path in http.get("/openapi.json").json()["paths"])
