"""ClipModel: loads a checkpoint and turns texts and images into vectors of one space."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from PIL import Image

from deployments.model.errors import ImageError, OptionError
from deployments.model.output import Rows, check_dimensions, finish
from deployments.model.pictures import decode
from deployments.model.pictures.decode import Decoded, Decoder, Encoded
from deployments.model.pictures.image import MAX_PIXELS
from deployments.model.pictures.seeing import AS_SERVED, Seeing
from deployments.model.runtime import compilation
from deployments.model.runtime.runners import Images, Pending, Runner
from deployments.model.runtime.warmup import WarmUp, warm_text, warm_vision
from deployments.model.tokenizer import TextTokenizer, TokenIds
from deployments.model.towers.packing import text_batches
from deployments.model.weights import loading
from deployments.model.weights.checkpoint import Checkpoint
from deployments.model.weights.fingerprint import tower_digest
from deployments.model.weights.source import WEIGHTS

logger = logging.getLogger(__name__)

MAX_BATCH_TOKENS = 16384
MAX_BATCH_SEQUENCES = 512
MAX_BATCH_IMAGES = 32

FINGERPRINTED = ("implementation", "dtype")
FINGERPRINTED_IMAGES = ("image_decode", "seeing")  # where the vision tower is loaded

TowerName = Literal["text", "vision"]
Implementation = Literal["native", "reference"]


class ClipModel:
    """One checkpoint on one device; call it from one thread at a time.

    Attributes:
        architecture: the sizes of the checkpoint.
        logit_scale: the trained log temperature.
        choices: what was chosen for each option.
        timely: by tower, the tokens or images of a batch that takes about 100 ms on a GPU, the
            warmed-up budget at most; empty before a warm-up.
        fingerprint: a digest of what rows depend on: the weights and the choices named above. Two
            kernels give rows that differ by roundings only, as two batches do.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        text: Runner[Sequence[TokenIds]] | None,
        vision: Runner[Images] | None,
        choices: dict[str, str],
        seeing: Seeing = AS_SERVED,
    ) -> None:
        self.architecture = arch = checkpoint.architecture
        self.logit_scale = checkpoint.logit_scale()
        self.tokenizer = TextTokenizer(checkpoint.folder, arch.text)
        runners = {"text": text, "vision": vision}
        self.choices = choices | {f"{k}_attention": x.attention for k, x in runners.items() if x}
        names = FINGERPRINTED + (FINGERPRINTED_IMAGES if vision is not None else ())
        shown = {name: choices[name] for name in names}
        self.fingerprint = tower_digest(checkpoint.folder / WEIGHTS, shown)
        self.timely: dict[TowerName, int] = {}
        self._device = device
        self._text = text
        self._vision = vision
        self._decoder = Decoder(arch.vision.image_size, device, choices["image_decode"], seeing)

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
        compile: str = "auto",
        image_decode: str = "auto",
        seeing: Seeing = AS_SERVED,
    ) -> Self:
        """Load a checkpoint.

        Args:
            source: `"demo"`, a folder, a hub id, or `"s3://bucket/prefix"`.
            revision: commit of a hub id; the published model has a pinned default.
            device: a torch device, or `"auto"` (CUDA where there is one).
            dtype: `"float32"`, `"bfloat16"`, `"float16"`, `"int8"` (CPUs: the linear layers, the
                rest in bfloat16), or `"auto"` (bfloat16 on GPUs from Ampere on, float16 on older
                ones, float32 on a CPU).
            attention: `"auto"` or a kernel of `deployments.model.towers.attention`.
            implementation: `"native"`, or `"reference"`: third-party towers, slower, the oracle.
            towers: the towers whose weights are loaded.
            compile: `"on"`, `"off"`, or `"auto"` (on CUDA and in int8, if the compiler works
                there); includes the graphs of small batches.
            image_decode: `"exact"`, `"draft"`, `"gpu"` (JPEGs), or `"auto"` (exact on a CPU).
            seeing: depth, rotation and transparency of images.

        Raises:
            CheckpointError: the source is missing, incomplete or not of this family.
            OptionError: an unknown or unavailable value of any other option.
        """
        place = loading.place(device, dtype)
        native = implementation == "native"
        compiles = compilation.resolve(compile, place.device, place.int8) and native
        if place.int8 and not native:
            raise OptionError("dtype 'int8' goes with implementation 'native' only")
        choices = {
            "implementation": implementation,
            "device": str(place.device),
            "dtype": place.precision,
            "compile": "on" if compiles else "off",
            "image_decode": decode.resolve(image_decode, place.device) if native else "exact",
            "seeing": repr(seeing),
        }
        load_text, load_vision = loading.loaders(
            implementation, attention, compile if compiles else "off"
        )
        if not towers or not set(towers) <= {"text", "vision"}:
            raise OptionError(f"towers is {towers!r}; name 'text', 'vision' or both")
        checkpoint = Checkpoint.open(str(source), revision)
        text = load_text(checkpoint, place) if "text" in towers else None
        vision = load_vision(checkpoint, place) if "vision" in towers else None
        return cls(checkpoint, place.device, text, vision, choices, seeing)

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
        for batch in text_batches(token_ids, batch_size, MAX_BATCH_TOKENS):
            rows[batch] = self.embed_tokens([token_ids[i] for i in batch])
        return finish(rows, dimensions, normalized)

    def encode_image(
        self,
        images: Sequence[Image.Image | bytes],
        dimensions: int | None = None,
        normalized: bool = True,
        batch_size: int = 16,
    ) -> Rows:
        """Embed images, in their order, as float32 [n, dimensions].

        Args:
            images: PIL images, or encoded bytes (JPEG, PNG, WebP and other raster formats).
            dimensions: width to truncate to before normalising; None is the full width.
            normalized: scale each row to length 1.
            batch_size: images per forward at most.

        Raises:
            ImageError: broken, or larger than the limits.
            OptionError: bad dimensions.
            TypeError: something else than a list of images.
        """
        if isinstance(images, (bytes, Image.Image)):
            raise TypeError("images must be a list of images, not one image: write [image]")
        check_dimensions(dimensions, self.width)
        rows = np.empty((len(images), self.width), dtype=np.float32)
        batches = [slice(x, x + batch_size) for x in range(0, len(images), batch_size)]
        # The next batch is decoded while the device works on this one.
        with ThreadPoolExecutor(1, "decode-ahead") as ahead:
            decoded = [ahead.submit(self.decode_images, images[batch]) for batch in batches[:1]]
            for batch, following in zip_longest(batches, batches[1:]):
                ready = decoded.pop().result()
                if following:
                    decoded.append(ahead.submit(self.decode_images, images[following]))
                for index, error in ready.failures.items():
                    raise ImageError(f"image {batch.start + index}: {error}") from error
                rows[batch] = self.embed_pixels(ready.pixels)
        return finish(rows, dimensions, normalized)

    def embed_tokens(self, token_ids: Sequence[TokenIds]) -> Rows:
        """Run one batch of int32 token ids; un-normalised float32 [n, width] in their order."""
        return self.launch_tokens(token_ids).rows()

    def embed_pixels(self, pixels: Images) -> Rows:
        """Run one batch of images (see `Images`); un-normalised float32 [n, width]."""
        return self.launch_pixels(pixels).rows()

    def launch_tokens(self, token_ids: Sequence[TokenIds]) -> Pending:
        """Queue what `embed_tokens` runs; a GPU works on it while the caller goes on."""
        if self._text is None:
            raise OptionError("the text tower is not loaded; load with towers=('text', ...)")
        return self._text.launch(token_ids)

    def launch_pixels(self, pixels: Images) -> Pending:
        """Queue what `embed_pixels` runs; a GPU works on it while the caller goes on."""
        if self._vision is None:
            raise OptionError("the vision tower is not loaded; load with towers=('vision', ...)")
        return self._vision.launch(pixels)

    def decode_images(self, images: Sequence[Encoded], max_pixels: int = MAX_PIXELS) -> Decoded:
        """Decode a batch for `embed_pixels`; any number of threads may do so at a time."""
        return self._decoder.decode(images, max_pixels)

    def warm_up(
        self,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        max_batch_sequences: int = MAX_BATCH_SEQUENCES,
        max_batch_images: int = MAX_BATCH_IMAGES,
    ) -> WarmUp:
        """Make every batch within the budget fast, from the thread that will run them.

        Raises:
            OptionError: a budget does not fit on the device; names the largest that does.
        """
        start_s, arch, device = time.perf_counter(), self.architecture, self._device
        text, vision = self._text, self._vision
        budget = max_batch_tokens, max_batch_sequences
        text_bytes, tokens = warm_text(text, arch.text, device, *budget) if text else (0, 0)
        images_bytes, images = (
            warm_vision(vision, arch.vision, device, max_batch_images) if vision else (0, 0)
        )
        report = WarmUp(time.perf_counter() - start_s, text_bytes, images_bytes, tokens, images)
        self.timely = {"text": tokens, "vision": images}
        logger.info("warmed up: %s, %s", self.choices, report)
        return report
