"""ClipModel: loads a checkpoint and turns texts and pictures into vectors of one space."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from deployments.model.architecture import Architecture
from deployments.model.attention import resolve
from deployments.model.checkpoint import Checkpoint
from deployments.model.errors import ImageError, OptionError
from deployments.model.image import Pixels, open_image, to_pixels
from deployments.model.output import Rows, check_dimensions, finish
from deployments.model.text import TextTower, pack
from deployments.model.tokenizer import TextTokenizer
from deployments.model.vision import VisionTower

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_BATCH_TOKENS = 16384

TowerName = Literal["text", "vision"]
Implementation = Literal["native", "reference"]
TokenIds = NDArray[np.int32]
TextForward = Callable[[Sequence[TokenIds]], Rows]
ImageForward = Callable[[Pixels], Rows]


class ClipModel:
    """One checkpoint on one device; call it from one thread at a time."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        text: TextForward | None,
        vision: ImageForward | None,
    ) -> None:
        self.architecture: Architecture = checkpoint.architecture
        self.logit_scale = checkpoint.logit_scale()
        self.tokenizer = TextTokenizer(checkpoint.folder, checkpoint.architecture.text)
        self._text = text
        self._vision = vision

    @classmethod
    def load(
        cls,
        source: str | Path = "demo",
        revision: str | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        attention: str = "auto",
        implementation: Implementation = "native",
        towers: Sequence[TowerName] = ("text", "vision"),
    ) -> Self:
        """Load a checkpoint.

        Args:
            source: `"demo"`, a folder, a hub id, or `"s3://bucket/prefix"`.
            revision: commit of a hub id; the published model has a pinned default.
            device: a torch device, or `"auto"` (CUDA where there is one).
            dtype: `"float32"`, `"bfloat16"`, `"float16"`, or `"auto"` (bfloat16 on CUDA).
            attention: `"auto"` or a kernel of `deployments.model.attention`.
            implementation: `"native"`, or `"reference"`: third-party towers, slower, the oracle.
            towers: the towers whose weights are loaded.

        Raises:
            CheckpointError: the source is missing, incomplete or not of this family.
            OptionError: an unknown device, dtype, attention, implementation or tower.
        """
        where = _device(device)
        kind = _dtype(dtype, where)
        if implementation not in ("native", "reference"):
            raise OptionError(f"implementation is {implementation!r}, not 'native' or 'reference'")
        if not towers or not set(towers) <= {"text", "vision"}:
            raise OptionError(f"towers is {towers!r}; name 'text', 'vision' or both")
        checkpoint = Checkpoint.open(str(source), revision)
        if implementation == "reference":
            from deployments.model import reference

            text = reference.load_text(checkpoint, where, kind) if "text" in towers else None
            vision = reference.load_vision(checkpoint, where, kind) if "vision" in towers else None
        else:
            resolve(attention, where)
            text = load_text(checkpoint, where, kind) if "text" in towers else None
            vision = load_vision(checkpoint, where, kind) if "vision" in towers else None
        return cls(checkpoint, text, vision)

    @property
    def width(self) -> int:
        """Width of a full embedding."""
        return self.architecture.width

    def encode_text(
        self,
        texts: Sequence[str],
        task: str | None = None,
        dimensions: int | None = None,
        normalized: bool = True,
        max_length: int = 8192,
        truncate: bool = False,
        batch_size: int = 64,
    ) -> Rows:
        """Embed texts, in their order, as float32 [n, dimensions].

        Args:
            texts: a list of strings.
            task: `"retrieval.query"` for queries, None for everything else.
            dimensions: width to truncate to before normalising; None is the full width.
            normalized: scale each row to length 1.
            max_length: limit in tokens, specials and query prefix included.
            truncate: cut longer texts instead of refusing them.
            batch_size: texts per forward at most.

        Raises:
            OptionError: a bad task, dimensions or max_length.
            TextTooLongError: a text over the limit.
            TypeError: a bare string instead of a list.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a list of strings, not one string: write [text]")
        check_dimensions(dimensions, self.width)
        token_ids = self.tokenizer.encode(texts, task, max_length, truncate)
        rows = np.empty((len(token_ids), self.width), dtype=np.float32)
        for batch in _text_batches(token_ids, batch_size):
            rows[batch] = self.embed_tokens([token_ids[i] for i in batch])
        return finish(rows, dimensions, normalized)

    def encode_image(
        self,
        images: Sequence[Image.Image | bytes],
        dimensions: int | None = None,
        normalized: bool = True,
        batch_size: int = 16,
    ) -> Rows:
        """Embed pictures, in their order, as float32 [n, dimensions].

        Args:
            images: PIL images, or encoded bytes (JPEG, PNG, WebP and other raster formats).
            dimensions: width to truncate to before normalising; None is the full width.
            normalized: scale each row to length 1.
            batch_size: pictures per forward at most.

        Raises:
            ImageError: broken, or larger than the limits.
            OptionError: bad dimensions.
            TypeError: something else than a list of pictures.
        """
        if isinstance(images, (bytes, Image.Image)):
            raise TypeError("images must be a list of images, not one image: write [image]")
        check_dimensions(dimensions, self.width)
        rows = np.empty((len(images), self.width), dtype=np.float32)
        for start in range(0, len(images), batch_size):
            batch = slice(start, start + batch_size)
            pixels = [self._pixels(start + i, image) for i, image in enumerate(images[batch])]
            rows[batch] = self.embed_pixels(np.stack(pixels))
        return finish(rows, dimensions, normalized)

    def embed_tokens(self, token_ids: Sequence[TokenIds]) -> Rows:
        """Run one batch of int32 token ids; un-normalised float32 [n, width] in their order."""
        if self._text is None:
            raise OptionError("the text tower is not loaded; load with towers=('text', ...)")
        return self._text(token_ids)

    def embed_pixels(self, pixels: Pixels) -> Rows:
        """Run one batch of uint8 [n, size, size, 3]; un-normalised float32 [n, width]."""
        if self._vision is None:
            raise OptionError("the vision tower is not loaded; load with towers=('vision', ...)")
        return self._vision(pixels)

    def _pixels(self, index: int, image: Image.Image | bytes) -> Pixels:
        try:
            opened = image if isinstance(image, Image.Image) else open_image(image)
            return to_pixels(opened, self.architecture.vision.image_size)
        except ImageError as error:
            raise ImageError(f"image {index}: {error}") from error


def load_text(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> TextForward:
    """Build the native text tower from a checkpoint."""
    with torch.device("meta"):
        tower = TextTower(checkpoint.architecture.text)
    _fill(tower, tower.published_tensors, checkpoint.text_weights(), device, dtype)
    pad = checkpoint.architecture.text.pad_token_id

    @torch.inference_mode()
    def forward(token_ids: Sequence[TokenIds]) -> Rows:
        packed = pack(token_ids, pad, device)
        rows = np.empty((len(token_ids), checkpoint.architecture.width), dtype=np.float32)
        rows[packed.order] = tower(packed).cpu().numpy()
        return rows

    return forward


def load_vision(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> ImageForward:
    """Build the native vision tower from a checkpoint."""
    with torch.device("meta"):
        tower = VisionTower(checkpoint.architecture.vision)
    _fill(tower, tower.published_tensors, checkpoint.vision_weights(), device, dtype)

    @torch.inference_mode()
    def forward(pixels: Pixels) -> Rows:
        rows: Rows = tower(torch.from_numpy(pixels).to(device)).cpu().numpy()
        return rows

    return forward


def _fill(
    tower: nn.Module,
    targets: Callable[[], dict[str, Tensor]],
    weights: Iterator[tuple[str, Tensor]],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Give a tower built on the meta device its memory and copy every published tensor into it."""
    tower.to(dtype).to_empty(device=device)
    tower.requires_grad_(False).eval()
    for name, parameter in tower.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()  # the k part of a fused bias has no published tensor
    views = targets()
    for name, tensor in weights:
        views.pop(name).copy_(tensor)
    if views:
        raise AssertionError(f"tensors without a published source: {sorted(views)}")


def _text_batches(token_ids: Sequence[TokenIds], batch_size: int) -> Iterator[list[int]]:
    """Yield indices, longest texts first, within the sequence and token budgets."""
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(token_ids)), key=lambda i: -len(token_ids[i])):
        length = len(token_ids[index])
        if batch and (len(batch) == batch_size or tokens + length > MAX_BATCH_TOKENS):
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += length
    if batch:
        yield batch


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"device is {name!r}; choose 'auto', 'cpu' or 'cuda'") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"device is {name!r}, but torch sees no GPU here")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise OptionError(f"dtype is {name!r}; choose 'auto' or one of {', '.join(DTYPES)}")
    return DTYPES[name]
