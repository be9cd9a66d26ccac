"""Where checkpoints are found: shipped, folder, hub cache, object store."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from deployments.model.errors import CheckpointError
from deployments.model.weights.source import DEMO, FILES, PINNED_REVISIONS, PUBLISHED, find

COMMIT = PINNED_REVISIONS[PUBLISHED]
BUCKET = "weights"


def test_demo_is_the_shipped_folder() -> None:
    """`demo` is found inside the package, complete."""
    assert find("demo") == DEMO
    assert all((DEMO / name).is_file() for name in FILES)


def test_a_folder_is_used_where_it_lies(tmp_path, monkeypatch) -> None:
    """An absolute, a relative and a home-relative path give the folder itself."""
    folder = tmp_path / "deep" / "checkpoint"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in (str(folder), "./deep/checkpoint", "deep/checkpoint", "~/deep/checkpoint"):
        assert find(source).resolve() == folder.resolve()


def test_an_incomplete_folder_names_what_it_lacks(tmp_path) -> None:
    """Every missing file is in the message, no other is."""
    (tmp_path / "config.json").touch()
    with pytest.raises(CheckpointError, match=r"lacks model.safetensors, preproc\S+, tokenizer"):
        find(str(tmp_path))
    assert find(str(tmp_path), files=("config.json",)) == tmp_path


@pytest.mark.parametrize("source", ["/no/such/folder", "./nothing", "~/nothing", "one", "a/b/c"])
def test_a_missing_folder_is_refused(source) -> None:
    """A path that is not there is not taken for a hub id."""
    with pytest.raises(CheckpointError, match=f"no folder '{source}'; a source is 'demo'"):
        find(source)


@pytest.mark.parametrize("source", ["demo", "s3://weights/v2"])
def test_a_revision_only_fits_a_hub_id(source) -> None:
    """A revision that would be ignored is refused."""
    with pytest.raises(CheckpointError, match="only applies to a hub id"):
        find(source, revision="main")


def find_offline(cache: Path, source: str, revision: str | None = None) -> tuple[str, str]:
    """Run `find` in a process without network access to the hub; return (folder, error)."""
    code = (
        "import sys, json\n"
        "from deployments.model.weights.source import find\n"
        "from deployments.model.errors import CheckpointError\n"
        "try: print(json.dumps([str(find(*json.loads(sys.argv[1]))), '']))\n"
        "except CheckpointError as error: print(json.dumps(['', str(error)]))\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, json.dumps([source, revision])],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    folder, error = json.loads(done.stdout)
    return folder, error


def cached_snapshot(cache: Path, commit: str, files: tuple[str, ...] = FILES) -> Path:
    """Lay out a snapshot as huggingface_hub does."""
    snapshot = cache / "models--jinaai--jina-clip-v2" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name in files:
        (snapshot / name).touch()
    return snapshot


def test_a_hub_id_offline_and_not_cached_is_refused(tmp_path) -> None:
    """The message names the id, the pinned revision, the setting, and a way out."""
    folder, error = find_offline(tmp_path, PUBLISHED)
    assert folder == ""
    for part in (PUBLISHED, COMMIT, "HF_HUB_OFFLINE is set", "pass the folder as source"):
        assert part in error


def test_a_cached_hub_id_is_found_offline_at_the_pinned_commit(tmp_path) -> None:
    """The pinned commit is the default; another one is found only when it is asked for."""
    pinned = cached_snapshot(tmp_path, COMMIT)
    other = cached_snapshot(tmp_path, "a" * 40)
    assert find_offline(tmp_path, PUBLISHED) == (str(pinned), "")
    assert find_offline(tmp_path, PUBLISHED, "a" * 40) == (str(other), "")
    assert "b" * 40 in find_offline(tmp_path, PUBLISHED, "b" * 40)[1]


def test_an_incomplete_snapshot_names_what_it_lacks(tmp_path) -> None:
    """A half-downloaded snapshot is an error, not a checkpoint."""
    cached_snapshot(tmp_path, COMMIT, FILES[:2])
    assert "lacks" in find_offline(tmp_path, PUBLISHED)[1]


@pytest.fixture(scope="module")
def store():
    """An S3 server on a free port, with a client to it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    client.create_bucket(Bucket=BUCKET)
    yield client, url
    client.close()
    server.stop()


@pytest.fixture
def s3(store, tmp_path, monkeypatch):
    """A client, with the environment pointing the product at the same server."""
    client, url = store
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return client


def upload(client, prefix: str, **contents: bytes) -> None:
    for name in FILES:
        body = contents.get(name.split(".")[0], name.encode())
        client.put_object(Bucket=BUCKET, Key=f"{prefix}{name}", Body=body)


@pytest.mark.parametrize("prefix", ["v2/fine/", ""])
def test_an_s3_prefix_is_copied_to_the_cache(s3, tmp_path, prefix) -> None:
    """Every file arrives with its bytes, below the cache folder, whatever the slashes."""
    upload(s3, prefix)
    folder = find(f"s3://{BUCKET}/{prefix}")
    assert folder.is_relative_to(tmp_path / "cache" / "jina-clip-serve")
    assert {name: (folder / name).read_bytes() for name in FILES} == {n: n.encode() for n in FILES}
    assert folder == find(f"s3://{BUCKET}/{prefix}".rstrip("/"))
    assert not list(folder.glob("*.partial"))


def test_only_changed_objects_are_downloaded_again(s3) -> None:
    """A second find leaves the files alone; a changed object replaces its own file only."""
    upload(s3, "changing/", config=b"first")
    folder = find(f"s3://{BUCKET}/changing")
    for name in FILES:
        os.utime(folder / name, (0, 0))
    find(f"s3://{BUCKET}/changing")
    assert {(folder / name).stat().st_mtime for name in FILES} == {0}
    s3.put_object(Bucket=BUCKET, Key="changing/config.json", Body=b"other")
    find(f"s3://{BUCKET}/changing")
    assert (folder / "config.json").read_bytes() == b"other"
    untouched = [name for name in FILES if (folder / name).stat().st_mtime == 0]
    assert untouched == [name for name in FILES if name != "config.json"]


def test_a_file_lost_from_the_cache_is_downloaded_again(s3) -> None:
    """The mark of a download does not stand in for the file itself."""
    upload(s3, "lost/")
    folder = find(f"s3://{BUCKET}/lost")
    (folder / "config.json").unlink()
    assert (find(f"s3://{BUCKET}/lost") / "config.json").read_bytes() == b"config.json"


@pytest.mark.parametrize("url", [f"s3://{BUCKET}/absent", "s3://no-such-bucket/v2"])
def test_a_missing_object_is_refused(s3, url) -> None:
    """The message holds the whole address of the object that cannot be read."""
    with pytest.raises(CheckpointError, match=f"cannot read {url}/model.safetensors"):
        find(url)


def test_a_model_loads_from_s3(s3, demo) -> None:
    """The shipped checkpoint, fetched from a bucket, gives the rows of the shipped one."""
    for name in FILES:
        s3.upload_file(str(DEMO / name), BUCKET, f"demo/{name}")
    model = type(demo).load(f"s3://{BUCKET}/demo", towers=("text",))
    assert (model.encode_text(["red apple"]) == demo.encode_text(["red apple"])).all()
    shutil.rmtree(find(f"s3://{BUCKET}/demo"))
