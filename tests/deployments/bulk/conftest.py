"""Small inputs of every kind, and readers of outputs."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

from deployments.bulk.options import EmbedOptions
from deployments.config import AppConfig, ModelConfig, TextTowerConfig, VisionTowerConfig

SMALL = {"num_cpus": 0.1}


@pytest.fixture(scope="session")
def bulk_app(reduced_folder: Path) -> AppConfig:
    """The reduced checkpoint, with replicas that any Ray has room for."""
    return AppConfig(
        model=ModelConfig(source=str(reduced_folder), device="cpu"),
        text=TextTowerConfig(**SMALL),
        vision=VisionTowerConfig(**SMALL),
    )


@pytest.fixture(scope="session")
def make_options(bulk_app: AppConfig) -> Callable[..., EmbedOptions]:
    """Make options of the reduced checkpoint."""
    return lambda **values: EmbedOptions(**{"app": bulk_app} | values)


class Inputs:
    """Writes small inputs, and reads outputs."""

    @staticmethod
    def picture(seed: int, format_name: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
        """Return an encoded picture that differs by seed."""
        image = Image.new("RGB", size, (seed * 37 % 256, seed * 91 % 256, seed * 53 % 256))
        image.paste((seed * 11 % 256, 255, 0), (5, 5, 20, 20))
        file = io.BytesIO()
        image.save(file, format_name)
        return file.getvalue()

    @staticmethod
    def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    @staticmethod
    def parquet(path: Path, columns: dict[str, Any], row_group_size: int = 1000) -> Path:
        pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
        return path

    @staticmethod
    def tar(path: Path, members: dict[str, bytes]) -> Path:
        with tarfile.open(path, "w") as archive:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return path

    @staticmethod
    def rows_of(folder: Path) -> pa.Table:
        """Return all rows of an output, in order, as any Arrow reader sees them."""
        return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("*.parquet")))


@pytest.fixture(scope="session")
def inputs() -> type[Inputs]:
    """What writes inputs and reads outputs."""
    return Inputs


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """An S3 server with an empty bucket, in the environment of all that starts later."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="data")
        yield client
        client.close()
    server.stop()
