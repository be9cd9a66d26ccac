"""Files and batches as they are kept and as they are shown."""

from typing import Annotated, Any, Literal

from pydantic import Field

from deployments.checked import Frozen

ENDPOINTS = "/v1/embeddings", "/v1/classify"
WINDOW = "24h"
HOUR_S = 3600
WINDOW_S = 24 * HOUR_S
Status = Literal[
    "validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelled"
]
OVER: tuple[Status, ...] = "completed", "failed", "expired", "cancelled"


class Record(Frozen):
    """What a file and a batch have in common.

    Attributes:
        owner: digest of the API key that made it; nobody else sees it.
        created_at: seconds since 1970, as all times here.
    """

    id: str
    owner: str
    created_at: int

    def shown(self) -> dict[str, Any]:
        """Return what its owner sees."""
        return self.model_dump(exclude={"owner"})


class File(Record):
    """An uploaded file, or one that a batch has written; without `expires_at` it stays."""

    object: Literal["file"] = "file"
    expires_at: int | None = None
    bytes: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"


class LineFault(Frozen):
    """What is wrong with a line of the input; `line` counts from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Faults(Frozen):
    """Why a batch has failed."""

    object: Literal["list"] = "list"
    data: tuple[LineFault, ...]


class Counts(Frozen):
    """How many lines there are, and what became of them so far."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class Batch(Record):
    """A file's lines and what became of them."""

    object: Literal["batch"] = "batch"
    endpoint: Literal["/v1/embeddings", "/v1/classify"]
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    expires_at: int
    output_expires_after_s: int | None = None
    status: Status = "validating"
    metadata: dict[str, str] | None = None
    errors: Faults | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    request_counts: Counts = Counts()
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens to it."""
        return self.status in OVER

    def shown(self) -> dict[str, Any]:
        """Return what its owner sees; one that is to end says so before it has."""
        shown = super().shown()
        if self.cancelling_at is not None and not self.is_over:
            shown["status"] = "cancelling"
        return shown


class ExpiresAfter(Frozen):
    """When a file is deleted, counted from when it is made."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=HOUR_S, le=30 * 24 * HOUR_S)]


class NewBatch(Frozen):
    """The body of `POST /v1/batches`; other fields of OpenAI's are taken and mean nothing here."""

    model_config = Frozen.model_config | {"extra": "ignore"}

    input_file_id: str
    endpoint: Literal["/v1/embeddings", "/v1/classify"]
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = Field(default=None, max_length=16)
    output_expires_after: ExpiresAfter | None = None


class InputLine(Frozen):
    """A line of the input."""

    model_config = Frozen.model_config | {"extra": "ignore"}

    custom_id: str = Field(min_length=1)
    method: Literal["POST"]
    url: str
    body: dict[str, Any]
