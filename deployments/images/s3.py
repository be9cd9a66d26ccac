"""Images from S3: objects of the buckets that the configuration allows."""

import re
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

from deployments.errors import ImageSourceError
from deployments.image_config import ImageConfig
from deployments.images.http import Claim, shorten, too_large

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PIECE_BYTES = 256 * 1024
UNICODE = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]*")


class Buckets:
    """Reads `s3://bucket/key` from the allowed buckets; blocks, so called from threads."""

    def __init__(self, config: ImageConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._made_client: S3Client | None = None

    def read(self, url: str, claim: Claim) -> bytes:
        """Return an object's bytes.

        Raises:
            ImageSourceError: the bucket is not allowed, or the object is missing, too large or
                cannot be read in time.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, key = self._split(url)
        name = f"the image {shorten(f's3://{bucket}/{key}')!r}"
        try:
            return self._get(name, bucket, key, claim)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "no code")
            raise ImageSourceError(f"{name} cannot be read: S3 answered {code}") from error
        except BotoCoreError as error:
            kind = type(error).__name__
            raise ImageSourceError(f"{name} cannot be read: {kind}") from error

    def _split(self, url: str) -> tuple[str, str]:
        bucket, _, key = url.partition(":")[2].removeprefix("//").partition("/")
        if bucket not in self._config.s3_buckets:
            raise ImageSourceError(
                f"the bucket {shorten(bucket)!r} is not one that images are read from "
                "(images.s3_buckets)"
            )
        # A client, proxy or server that resolves dot segments would end up in another bucket.
        if not key or any(part in (".", "..") for part in key.split("/")):
            raise ImageSourceError("the s3 URL needs a key without '.' and '..' parts")
        if not UNICODE.fullmatch(key):
            raise ImageSourceError("the s3 URL's key has characters that are not Unicode text")
        return bucket, key

    def _get(self, name: str, bucket: str, key: str, claim: Claim) -> bytes:
        deadline_s = time.monotonic() + self._config.fetch_timeout_s
        limit_bytes = self._config.max_image_bytes
        answer = self._client().get_object(Bucket=bucket, Key=key)
        with closing(answer["Body"]) as stream:
            if answer["ContentLength"] > limit_bytes:
                raise ImageSourceError(too_large(name, limit_bytes))
            claim(answer["ContentLength"])
            body = bytearray()
            while piece := stream.read(PIECE_BYTES):
                body += piece
                if len(body) > limit_bytes:
                    raise ImageSourceError(too_large(name, limit_bytes))
                if time.monotonic() > deadline_s:
                    raise ImageSourceError(
                        f"{name} took longer than {self._config.fetch_timeout_s:g} s"
                    )
        return bytes(body)

    def _client(self) -> "S3Client":
        import boto3
        from botocore.config import Config

        with self._lock:
            if self._made_client is None:
                self._made_client = boto3.session.Session().client(
                    "s3",
                    config=Config(
                        connect_timeout=self._config.connect_timeout_s,
                        read_timeout=self._config.fetch_timeout_s,
                        retries={"total_max_attempts": 2},
                        max_pool_connections=self._config.max_fetches,
                    ),
                )
            return self._made_client
