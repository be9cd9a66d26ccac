"""Findings about the weights: where they are, and whether they are the right ones."""

import hashlib
import json
from pathlib import Path

from deployments.config import AppConfig
from deployments.model.errors import CheckpointError
from deployments.model.weights.source import DEMO, FILES, PINNED_REVISIONS, PUBLISHED, WEIGHTS, find
from serve_app.doctor.finding import Finding, fails, ok, warning

PUBLISHED_BYTES = 1_730_688_642
PUBLISHED_SHA256 = "eff4c0a13ab4de71a9927a56968fef44e626920ff935e503f1bd3e6ec797062d"
FOLDER = f"set model.source to a folder with {', '.join(FILES)}"


def locate(source: str, revision: str | None) -> tuple[Path | None, Finding]:
    """Find the checkpoint without downloading it, and read its header strictly."""
    from deployments.model.weights.checkpoint import Checkpoint

    if source.startswith("s3://"):
        return None, ok("weights", f"{source}, fetched at start")
    try:
        folder = _cached(source, revision) if _is_hub_id(source) else find(source, revision)
        if folder is None:
            return None, _not_cached(source)
        Checkpoint(folder)
    except CheckpointError as error:
        return None, fails("weights", str(error), "correct model.source, or copy the files anew")
    size = (folder / WEIGHTS).stat().st_size
    return folder, ok("weights", f"{source} in {folder}, {size:,} bytes, every tensor as expected")


def _is_hub_id(source: str) -> bool:
    is_path = source.startswith((".", "/", "~")) or Path(source).is_dir()
    return source.count("/") == 1 and not is_path


def _cached(source: str, revision: str | None) -> Path | None:
    """Return the folder of a hub id that was downloaded before, None if it was not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    revision = revision or PINNED_REVISIONS.get(source)
    try:
        folder = snapshot_download(source, revision=revision, local_files_only=True)
    except (HFValidationError, LocalEntryNotFoundError, OSError):
        return None
    return find(folder)


def _not_cached(source: str) -> Finding:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    found = f"{source} is not in the local hub cache"
    if HF_HUB_OFFLINE:
        return fails("weights", f"{found}, and HF_HUB_OFFLINE is set", FOLDER)
    return warning("weights", f"{found}; it is downloaded at start", f"without a network: {FOLDER}")


def checksum(source: str, folder: Path, digest: str) -> Finding:
    """Compare the SHA-256 of the weights with the one that is known for them."""
    if source == "demo":
        facts = json.loads((DEMO / "golden.json").read_text(encoding="utf-8"))
        return _compare(digest, facts["model_sha256"], "the shipped checkpoint")
    if source == PUBLISHED:
        size = (folder / WEIGHTS).stat().st_size
        if size != PUBLISHED_BYTES:
            found = f"{size:,} bytes, but the published weights have {PUBLISHED_BYTES:,}"
            return fails("sha256", found, "download them again")
    if source == PUBLISHED or digest == PUBLISHED_SHA256:
        return _compare(digest, PUBLISHED_SHA256, f"the published {PUBLISHED}")
    return ok("sha256", f"{digest}; weights of your own: no sum is known")


def s3_credentials(config: AppConfig) -> list[Finding]:
    """Look for credentials where anything is to be read from s3://."""
    if not (config.model.source.startswith("s3://") or config.images.s3_buckets):
        return []
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        credentials = boto3.Session().get_credentials()
    except BotoCoreError as error:
        return [fails("S3 credentials", str(error), "correct the AWS profile or its variables")]
    if credentials is None:
        advice = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the node an IAM role"
        return [fails("S3 credentials", "none found", advice)]
    return [ok("S3 credentials", f"from {credentials.method}")]


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _compare(digest: str, expected: str, what: str) -> Finding:
    if digest == expected:
        return ok("sha256", f"{digest}, that of {what}")
    advice = "download the weights again; if the change is meant, pass the folder as model.source"
    return fails("sha256", f"{digest}, but {what} has {expected}", advice)
