"""Images from S3, against a real S3-compatible server on this machine."""

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ReadTimeoutError
from moto.server import ThreadedMotoServer

import serve_app
from deployments.errors import ImageSourceError
from deployments.image_config import ImageConfig
from deployments.images.s3 import Buckets
from deployments.images.sources import ImageSources, anything

CAT = (Path(serve_app.__file__).parent / "gallery" / "cat-face.png").read_bytes()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of a server with the buckets `open` and `closed`."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3", "us-east-1", endpoint_url=url, aws_access_key_id="a", aws_secret_access_key="b"
    )
    for bucket in ("open", "closed"):
        client.create_bucket(Bucket=bucket)
        for key in ("cat.png", "cats/a cat?#%2B\u00fc.png"):
            client.put_object(Bucket=bucket, Key=key, Body=CAT)
    yield url
    server.stop()


@pytest.fixture(autouse=True)
def operator(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an operator sets: an endpoint, a region and keys."""
    for name in ("AWS_PROFILE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")


async def read(source: str, **settings: Any) -> bytes:
    sources = ImageSources(ImageConfig(s3_buckets=("open",), **settings))
    try:
        return await sources.read(source)
    finally:
        await sources.close()


async def refusal(source: str, **settings: Any) -> str:
    with pytest.raises(ImageSourceError) as caught:
        await read(source, **settings)
    return str(caught.value)


async def test_an_object_is_read_unchanged() -> None:
    """The key is taken as it is written, without any escapes."""
    assert await read("s3://open/cat.png") == CAT
    assert await read(" S3://open/cats/a cat?#%2B\u00fc.png\n") == CAT


@pytest.mark.parametrize(
    "url", ["s3://closed/cat.png", "s3:///cat.png", "s3://open@x/cat.png", "s3:"]
)
async def test_only_listed_buckets_are_read(url: str) -> None:
    """A bucket that exists is refused unless it is listed, and none is by default."""
    assert "not one that images are read from (images.s3_buckets)" in await refusal(url)
    with pytest.raises(ImageSourceError, match="not one that images are read from"):
        Buckets(ImageConfig()).read("s3://open/cat.png", anything)
    assert Buckets(ImageConfig(s3_buckets=("closed",))).read("s3://closed/cat.png", anything) == CAT


@pytest.mark.parametrize(
    "key", ["", "..", "../closed/cat.png", "x/../../closed/cat.png", "./cat.png"]
)
async def test_a_key_does_not_lead_to_another_bucket(key: str) -> None:
    """Dot segments, which HTTP clients and servers resolve, are refused."""
    assert "needs a key without '.' and '..' parts" in await refusal(f"s3://open/{key}")


@pytest.mark.parametrize("key", ["a\ud800", "a\nb", "\x00"])
async def test_a_key_that_is_no_text_is_refused(key: str) -> None:
    """What JSON strings may hold and S3 keys may not is the caller's error."""
    assert "not Unicode text" in await refusal(f"s3://open/{key}.png")


@pytest.mark.parametrize(("limit_bytes", "fits"), [(len(CAT), True), (len(CAT) - 1, False)])
async def test_objects_have_a_size_limit(limit_bytes: int, fits: bool) -> None:
    """An object at the limit is read, one byte more is refused."""
    if fits:
        assert await read("s3://open/cat.png", max_image_bytes=limit_bytes) == CAT
    else:
        message = await refusal("s3://open/cat.png", max_image_bytes=limit_bytes)
        assert message.startswith(
            f"the image 's3://open/cat.png' has more than {limit_bytes:,} byt"
        )


async def test_a_missing_object_names_the_answer() -> None:
    """What S3 answered is said, and no key of the operator."""
    message = await refusal(f"s3://open/{'n' * 500}")
    assert "S3 answered NoSuchKey" in message
    assert "hunter2" not in message
    assert len(message) < 250


async def test_a_server_that_is_down_is_an_error_of_the_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No connection ends as an image source's error without the endpoint's address."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    message = await refusal("s3://open/cat.png")
    assert message == "the image 's3://open/cat.png' cannot be read: EndpointConnectionError"


class Stream(io.RawIOBase):
    """A body that never ends, or that fails."""

    def __init__(self, pause_s: float, error: Exception | None = None) -> None:
        self.pause_s, self.error, self.num_read = pause_s, error, 0

    def read(self, size: int = -1) -> bytes:
        time.sleep(self.pause_s)
        if self.error is not None:
            raise self.error
        self.num_read += 1
        return b"y"


@pytest.mark.parametrize(
    ("stream", "settings", "reason"),
    [
        (Stream(0), {"max_image_bytes": 100}, "more than 100 bytes"),
        (Stream(0.01), {"fetch_timeout_s": 0.05}, r"took longer than 0\.05 s"),
        (Stream(0, ReadTimeoutError(endpoint_url="http://10.0.0.1")), {}, "ReadTimeoutError$"),
    ],
)
def test_a_body_is_bounded_while_it_is_read(
    monkeypatch: pytest.MonkeyPatch, stream: Stream, settings: dict[str, Any], reason: str
) -> None:
    """A length that lies, a drip without end and a broken body end, and the body is closed."""

    class Client:
        def get_object(self, **_: str) -> dict[str, Any]:
            return {"ContentLength": 1, "Body": stream}

    buckets = Buckets(ImageConfig(s3_buckets=("open",), **settings))
    monkeypatch.setattr(buckets, "_client", Client)
    with pytest.raises(ImageSourceError, match=reason):
        buckets.read("s3://open/cat.png", anything)
    assert stream.closed
    assert stream.num_read <= 101


def test_all_threads_share_one_client() -> None:
    """The client is made once."""
    buckets = Buckets(ImageConfig(s3_buckets=("open",)))
    assert buckets._client() is buckets._client()
