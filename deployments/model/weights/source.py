"""Where a checkpoint comes from: the shipped one, a folder, the hub, or s3://.

`find(source)` gives a local folder with the files of the published layout. No remote code is ever
downloaded or run.
"""

import logging
import os
from pathlib import Path
from urllib.parse import urlsplit

from deployments.model.errors import CheckpointError

DEMO = Path(__file__).parents[1] / "demo"
PUBLISHED = "jinaai/jina-clip-v2"
PINNED_REVISIONS = {PUBLISHED: "e10d47f5691d0454a0fb5d13f46f2199b74cb436"}
WEIGHTS = "model.safetensors"
TOKENIZER_FILES = ("config.json", "preprocessor_config.json", "tokenizer.json")
FILES = (WEIGHTS, *TOKENIZER_FILES)

logger = logging.getLogger(__name__)


def find(source: str, revision: str | None = None, files: tuple[str, ...] = FILES) -> Path:
    """Return the local folder of a checkpoint, downloading it where the source is remote.

    Args:
        source: `"demo"` (the shipped checkpoint), a folder, a hub id such as
            `"jinaai/jina-clip-v2"`, or `"s3://bucket/prefix"`.
        revision: hub commit, tag or branch; None means the pinned commit of the published model.
        files: what is needed of it; `TOKENIZER_FILES` leaves the weights where they are.

    Raises:
        CheckpointError: the source does not exist, cannot be reached or lacks a file.
    """
    if revision is not None and (source == "demo" or source.startswith("s3://")):
        raise CheckpointError(f"revision {revision!r} only applies to a hub id, not to {source!r}")
    if source == "demo":
        folder = DEMO
    elif source.startswith("s3://"):
        folder = _download_s3(source, files)
    elif (path := Path(source).expanduser()).is_dir():
        folder = path
    elif source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise CheckpointError(
            f"no folder {source!r}; a source is 'demo', a folder, a hub id like {PUBLISHED!r}, "
            "or s3://bucket/prefix"
        )
    else:
        folder = _download_hub(source, revision or PINNED_REVISIONS.get(source), files)
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"checkpoint {source!r} lacks {', '.join(missing)} (in {folder})")
    return folder


def _download_hub(repo_id: str, revision: str | None, files: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    logger.info("loading %s at %s from the hub", repo_id, revision or "its main branch")
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(files)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        offline = " (HF_HUB_OFFLINE is set)" if HF_HUB_OFFLINE else ""
        raise CheckpointError(
            f"cannot get {repo_id!r} at {revision or 'main'} from the hub{offline}: {reason}; "
            "download it elsewhere and pass the folder as source"
        ) from error


def _download_s3(url: str, files: tuple[str, ...]) -> Path:
    """Copy the checkpoint's files to the cache, keeping those whose ETag is unchanged."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    parts = urlsplit(url)
    bucket, prefix = parts.netloc, parts.path.strip("/")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "jina-clip-serve" / bucket / prefix
    folder.mkdir(parents=True, exist_ok=True)
    client = boto3.client("s3")
    for name in files:
        key = f"{prefix}/{name}" if prefix else name
        try:
            etag = client.head_object(Bucket=bucket, Key=key)["ETag"]
            target, mark = folder / name, folder / f"{name}.etag"
            if target.is_file() and mark.is_file() and mark.read_text() == etag:
                continue
            logger.info("downloading s3://%s/%s", bucket, key)
            partial = folder / f"{name}.{os.getpid()}.partial"
            client.download_file(bucket, key, str(partial))
            partial.replace(target)  # readers never see half a file
            mark.write_text(etag)
        except (BotoCoreError, ClientError) as error:
            raise CheckpointError(f"cannot read s3://{bucket}/{key}: {error}") from error
    return folder
