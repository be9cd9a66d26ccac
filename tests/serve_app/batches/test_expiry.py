"""Files go when their time is over, by a clock that the tests set."""

import asyncio
import os

import pytest
from openai import NotFoundError, UnprocessableEntityError
from starlette.testclient import TestClient

from deployments.config import AppConfig
from deployments.errors import NotFoundError as NoFileError
from serve_app.api import ingress
from serve_app.batches import service, worker
from serve_app.batches.folder import new_id
from serve_app.batches.job import Answer
from serve_app.batches.objects import Batch, File
from tests.serve_app.api.stand_in import StandIn
from tests.serve_app.batches.conftest import MONTH_S, NOW_S, OWNER
from tests.serve_app.batches.test_routes import client_of, finished, uploaded
from tests.serve_app.batches.told import line, worker_of

HOUR_S = 3600
DAY_S = 24 * HOUR_S


def later(seconds: int) -> dict:
    """Return a policy as OpenAI's clients send it."""
    return {"anchor": "created_at", "seconds": seconds}


@pytest.fixture
def served(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(service, "folder_of", lambda _: folder)
    config = AppConfig.model_validate({"batches": {"folder": str(folder.root)}})
    router = StandIn(config)
    with TestClient(ingress.http_app(config, lambda: router)) as http:
        yield http


def test_a_file_goes_after_the_time_that_its_owner_gave(served, clock):
    """Until then it is there; without a time it has the configuration's, a month."""
    client = client_of(served)
    kept = uploaded(client, line(1))
    assert kept.expires_at == NOW_S + MONTH_S
    data = ("in.jsonl", line(1).encode())
    brief = client.files.create(file=data, purpose="batch", expires_after=later(HOUR_S))
    assert brief.expires_at == NOW_S + HOUR_S
    clock.now_s += HOUR_S - 1
    assert client.files.retrieve(brief.id) == brief
    clock.now_s += 1
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(NotFoundError, match=brief.id):
            call(brief.id)
    with pytest.raises(NotFoundError, match=brief.id):
        finished(client, brief.id)
    assert [file.id for file in client.files.list()] == [kept.id]


def test_the_output_of_a_batch_goes_likewise(served, clock):
    """Counted from when it was written; the batch's record stays."""
    client = client_of(served)
    asked = {"endpoint": "/v1/embeddings", "completion_window": "24h"}
    file = uploaded(client, line(1))
    brief = client.batches.create(
        input_file_id=file.id, output_expires_after=later(HOUR_S), **asked
    )
    while brief.status != "completed":
        brief = client.batches.retrieve(brief.id)
    usual = finished(client, file.id)
    expiries = [client.files.retrieve(x.output_file_id).expires_at for x in (brief, usual)]
    assert expiries == [NOW_S + HOUR_S, NOW_S + MONTH_S]
    clock.now_s += HOUR_S
    with pytest.raises(NotFoundError):
        client.files.content(brief.output_file_id)
    assert client.files.content(usual.output_file_id).text
    assert client.batches.retrieve(brief.id).status == "completed"


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ({"anchor": "last_used_at", "seconds": HOUR_S}, r"expires_after\.anchor"),
        (later(HOUR_S - 1), r"expires_after\.seconds"),
        (later(MONTH_S + 1), r"expires_after\.seconds"),
        ({"anchor": "created_at"}, r"expires_after\.seconds"),
        ({"anchor": "created_at", "seconds": "soon"}, r"expires_after\.seconds"),
    ],
)
def test_a_time_that_openai_would_refuse_is_refused(served, policy, field):
    """For uploads and for outputs; nothing is kept."""
    client = client_of(served)
    with pytest.raises(UnprocessableEntityError, match=field):
        client.files.create(file=b"{}", purpose="batch", expires_after=policy)
    assert list(client.files.list()) == []
    file = uploaded(client, line(1))
    with pytest.raises(UnprocessableEntityError, match=f"output_{field}"):
        client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/embeddings",
            completion_window="24h",
            output_expires_after=policy,
        )


def test_what_has_expired_is_deleted_but_for_what_a_batch_still_reads(folder, begun, clock):
    """Its owner does not see it any more; when the batch is over, it goes."""
    batch, other = begun(line(1)), begun(line(1))
    folder.close(other.model_copy(update={"status": "completed"}))
    clock.now_s += MONTH_S - 1
    folder.delete_expired()
    assert folder.data(other.input_file_id).exists()
    clock.now_s += 1
    folder.delete_expired()
    assert not folder.data(other.input_file_id).exists()
    assert folder.data(batch.input_file_id).exists()
    with pytest.raises(NoFileError):
        folder.load(File, batch.input_file_id, OWNER)
    folder.close(batch.model_copy(update={"status": "completed"}))
    folder.delete_expired()
    assert not list((folder.root / "files").iterdir())
    assert {x.id for x in folder.owned(Batch, OWNER)} == {batch.id, other.id}


def test_bytes_without_a_record_are_deleted_after_a_day(folder, begun, clock):
    """A Router died while it took them in; what is being written now is left alone."""
    batch = begun(line(1))
    lost = [folder.data(new_id("file-")), folder.data(new_id("file-")).with_suffix(".new")]
    for path in lost:
        path.write_text("half a li")
        os.utime(path, (NOW_S, NOW_S))
    clock.now_s += DAY_S - 1
    folder.delete_expired()
    assert all(path.exists() for path in lost)
    clock.now_s += 1
    folder.delete_expired()
    assert not any(path.exists() for path in lost)
    assert folder.load(File, batch.input_file_id)


async def test_a_worker_deletes_what_has_expired(folder, begun, clock, monkeypatch):
    """At its start and from time to time, whether or not there is work."""
    monkeypatch.setattr(worker, "SWEEP_S", 0.01)
    batches = [begun(line(number), output_expires_after_s=9) for number in range(2)]

    async def ask(_: Batch, body: bytes) -> Answer:
        return Answer(200, "q", body)

    working = asyncio.create_task(worker_of(folder, ask).run())
    async with asyncio.timeout(60):
        while folder.open_batches():  # noqa: ASYNC110 - another task's file
            await asyncio.sleep(0.01)
        clock.now_s += MONTH_S
        while list((folder.root / "files").iterdir()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    working.cancel()
    assert {folder.load(Batch, x.id).status for x in batches} == {"completed"}


def test_without_a_time_in_the_configuration_files_stay(folder, clock, monkeypatch):
    """Until they are deleted."""
    monkeypatch.setattr(service, "folder_of", lambda _: folder)
    batches = {"folder": str(folder.root), "files_expire_after_s": None}
    router = StandIn(AppConfig.model_validate({"batches": batches}))
    with TestClient(ingress.http_app(router.config, lambda: router)) as http:
        client = client_of(http)
        file = uploaded(client, line(1))
        clock.now_s += 100 * MONTH_S
        folder.delete_expired()
        assert client.files.retrieve(file.id) == file
    assert file.expires_at is None
