"""What a caller of the client hands over, in batches of what the server takes."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import numpy as np
from PIL import Image as PillowImage

from deployments.model.output import Rows, to_tensor
from serve_app.client.calls import A, Call

Image = str | bytes | Path | PillowImage.Image
HandleItem = dict[str, str | bytes]

URL_SCHEMES = ("http://", "https://", "s3://")
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")


@dataclass(frozen=True)
class Batch(Generic[A]):
    """Inputs of one request; files are read and images encoded when it is sent."""

    inputs: Sequence[Any]
    to_item: Callable[[Any], HandleItem]
    call: Call[A]

    def items(self) -> list[HandleItem]:
        """Return the items in the form that an application handle takes."""
        return [self.to_item(value) for value in self.inputs]


@dataclass(frozen=True)
class Job(Generic[A]):
    """A call's batches, and whether it was made with one input instead of a list."""

    batches: list[Batch[A]]
    is_single: bool


@dataclass(frozen=True)
class Output:
    """The form in which the caller wants the rows.

    Attributes:
        as_numpy: one float32 array; otherwise a list of tensors.
        as_tensor: one tensor; goes before `as_numpy`.
        device: of the tensors.
        cut: width to cut rows to, where the server did not.
    """

    as_numpy: bool
    as_tensor: bool
    device: str | None
    cut: int | None = None

    def of(self, is_single: bool, parts: Sequence[Rows]) -> Any:  # noqa: ANN401 - as the reference
        """Join the batches' rows."""
        # Any: an array, a tensor or a list of tensors, as in the reference.
        rows: Any = np.concatenate(parts) if parts else np.empty((0, 0), np.float32)
        rows = rows[:, : self.cut]
        if self.as_tensor or not self.as_numpy:
            rows = to_tensor(rows, self.device)
            rows = rows if self.as_tensor else list(rows)
        return rows[0] if is_single else rows


def batched(
    values: Image | Sequence[Image],
    batch_size: int,
    call: Call[A],
    to_item: Callable[[Any], HandleItem],
) -> Job[A]:
    """Cut one input or a list of them into batches."""
    is_single = isinstance(values, Image)
    inputs: list[Any] = [values] if is_single else list(values)  # type: ignore[arg-type]
    starts = range(0, len(inputs), batch_size)
    batches = [Batch(inputs[start : start + batch_size], to_item, call) for start in starts]
    return Job(batches, is_single)


def text_item(value: object) -> HandleItem:
    """Return a text as an item.

    Raises:
        TypeError: not a string.
    """
    if not isinstance(value, str):
        raise TypeError(f"a text must be a string, not {type(value).__name__}")
    return {"text": value}


def image_item(value: Image) -> HandleItem:
    """Return an image as an item.

    Raises:
        FileNotFoundError: a string that is neither a URL nor the name of a local file.
        TypeError: no image.
    """
    if isinstance(value, bytes):
        return {"image": value}
    if isinstance(value, PillowImage.Image):
        return {"image": png(value)}
    if isinstance(value, str) and (value.startswith("data:") or _is_url(value)):
        return {"image": value}
    if isinstance(value, (str, Path)):
        return {"image": Path(value).read_bytes()}
    raise TypeError(f"an image must not be {type(value).__name__}; see encode_image")


def text_or_image(value: Image) -> HandleItem:
    """Return an item whose strings are texts."""
    return text_item(value) if isinstance(value, str) else image_item(value)


def guessed_item(value: Image) -> HandleItem:
    """Return an item as sentence-transformers takes strings: URL, data URI, local file or text."""
    if isinstance(value, str) and not (
        value.startswith("data:image/") or _is_url(value) or _is_file(value)
    ):
        return text_item(value)
    return image_item(value)


def png(image: PillowImage.Image) -> bytes:
    """Return an image as PNG, which keeps every pixel."""
    buffer = io.BytesIO()
    kept = image if image.mode in PNG_MODES else image.convert("RGB")
    kept.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _is_url(value: str) -> bool:
    return value.lower().startswith(URL_SCHEMES)


def _is_file(value: str) -> bool:
    try:
        return Path(value).is_file()
    except (OSError, ValueError):  # too long or with characters that no path has
        return False
