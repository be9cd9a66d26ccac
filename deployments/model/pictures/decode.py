"""Many encoded images to pixels at once: JPEGs on the GPU where there is one, others exactly.

The GPU's decoder and resizer differ from Pillow's by roundings, 0.13 of 255 on average for large
photographs. Whatever it cannot take, or fails on, goes the exact way, which also decides
whether an image is broken. A broken image fails alone.
"""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from deployments.model.errors import ImageError, OptionError
from deployments.model.pictures.image import MAX_PIXELS, Pixels, check_size, open_image, to_pixels
from deployments.model.pictures.seeing import AS_SERVED, Seeing
from deployments.model.towers.packing import batches

logger = logging.getLogger(__name__)

MODES = ("auto", "exact", "draft", "gpu")

# Half a GiB on the device each: one image as float32, and a group of them as uint8.
GPU_MAX_PIXELS = 48_000_000
GPU_GROUP_PIXELS = 192_000_000

Encoded = bytes | Image.Image
Result = TypeVar("Result")


@dataclass(frozen=True)
class Decoded:
    """The images that could be read.

    Attributes:
        pixels: uint8 [len(kept), size, size, 3], on the host, or on the device.
        kept: input index of each image, ascending.
        failures: by input index, why an image could not be read.
    """

    pixels: Pixels | Tensor
    kept: list[int]
    failures: dict[int, ImageError]


def resolve(mode: str, device: torch.device) -> str:
    """Turn `"auto"` into `"gpu"` where JPEGs can be decoded on the device, and log the choice.

    Where it cannot, it is `"exact"`.

    Raises:
        OptionError: the mode is unknown, or `"gpu"` is asked for and does not run here.
    """
    if mode not in MODES:
        raise OptionError(f"image_decode is {mode!r}; choose one of {', '.join(MODES)}")
    fault = _gpu_fault(device) if mode in ("auto", "gpu") else ""
    if mode == "gpu" and fault:
        raise OptionError(f"image_decode 'gpu' does not run on {device}: {fault}")
    chosen = mode
    if mode == "auto":
        chosen = "exact" if fault else "gpu"
    logger.info("image decoding for %s: %s", device, chosen)
    return chosen


class Decoder:
    """Decodes, resizes and crops for one tower; safe to use from several threads."""

    def __init__(
        self,
        size: int,
        device: torch.device,
        mode: str = "exact",
        seeing: Seeing = AS_SERVED,
    ) -> None:
        self._size = size
        self._seeing = seeing
        self._device = device
        self._gpu = mode == "gpu"
        self._draft = mode == "draft"
        self._stream = torch.cuda.Stream(device, priority=-1) if self._gpu else None
        self._decoding = threading.Lock()
        self._threads = ThreadPoolExecutor(min(32, os.cpu_count() or 1), "decode")

    def decode(self, images: Sequence[Encoded], max_pixels: int = MAX_PIXELS) -> Decoded:
        """Decode images; never raises for one that is broken."""
        opened = [_attempt(_open, image, max_pixels) for image in images]
        done: dict[int, Pixels | Tensor | ImageError] = {
            index: image for index, image in enumerate(opened) if isinstance(image, ImageError)
        }
        # A stream of its own: decoding does not wait for the batch that the tower works on.
        with torch.cuda.stream(self._stream):
            on_gpu = self._on_gpu(images, opened) if self._gpu else {}
            rest = [index for index in range(len(images)) if index not in done | on_gpu]
            futures = [
                self._threads.submit(
                    _attempt,
                    to_pixels,
                    opened[index],
                    self._size,
                    max_pixels,
                    self._draft,
                    self._seeing,
                )
                for index in rest
            ]
            done |= on_gpu | {i: x.result() for i, x in zip(rest, futures, strict=True)}
            return self._gather([done[index] for index in range(len(images))])

    def _gather(self, results: Sequence[Pixels | Tensor | ImageError]) -> Decoded:
        failures = {i: x for i, x in enumerate(results) if isinstance(x, ImageError)}
        kept = [index for index in range(len(results)) if index not in failures]
        good = [x for x in results if not isinstance(x, ImageError)]
        pixels: Pixels | Tensor
        if any(isinstance(x, Tensor) for x in good):
            tensors = [x if isinstance(x, Tensor) else torch.tensor(x) for x in good]
            pixels = torch.stack([x.to(self._device) for x in tensors])
            torch.cuda.current_stream(self._device).synchronize()
        else:
            shape = (len(good), self._size, self._size, 3)
            pixels = np.stack(good) if good else np.empty(shape, np.uint8)
        return Decoded(pixels, kept, failures)

    def _on_gpu(
        self, images: Sequence[Encoded], opened: Sequence[Image.Image | ImageError]
    ) -> dict[int, Tensor]:
        """Return the images that the GPU could decode."""
        suited = {
            index: (image, header)
            for index, (image, header) in enumerate(zip(images, opened, strict=True))
            if isinstance(image, bytes)
            and not isinstance(header, ImageError)
            and gpu_suits(image, header, self._size)
            and self._seeing.turn(header) is None
        }
        pixels: dict[int, Tensor] = {}
        places = list(suited)
        sizes = [header.width * header.height for _, header in suited.values()]
        for batch in batches(sizes, GPU_GROUP_PIXELS):
            chunk = [places[index] for index in batch]
            try:
                resized = self._decode_and_resize([suited[index][0] for index in chunk])
                pixels |= dict(zip(chunk, resized, strict=True))
            except RuntimeError as error:
                logger.info("the GPU refused %d JPEGs, decoding exactly: %s", len(chunk), error)
        return pixels

    def _decode_and_resize(self, images: Sequence[bytes]) -> list[Tensor]:
        """Decode JPEGs on the GPU and resize them, one thread at a time.

        torchvision takes the memory of the decoded images from the caller's stream and writes them
        on another. Memory of images that this stream still reads must not be handed out again, so
        nothing may be under way on it before and after (pytorch/vision#9606).
        """
        with self._decoding:
            stream = torch.cuda.current_stream(self._device)
            stream.synchronize()
            decoded = decode_jpegs(images, self._device)
            resized = [resize(image, self._size) for image in decoded]
            stream.synchronize()
            return resized


def gpu_suits(data: bytes, header: Image.Image, size: int) -> bool:
    """Tell whether the GPU's decoder reads an image as Pillow does.

    It would take a three-channel JPEG for YCbCr whatever its Adobe marker says, does not know
    four channels, and fills up a file that was cut off.
    """
    complete = data.rstrip(b"\0").endswith(b"\xff\xd9")
    plain = header.mode in ("L", "RGB") and header.info.get("adobe_transform", 1) == 1
    narrow = max(header.size) > 16 * min(header.size) or min(header.size) > 16 * size
    fits = header.width * header.height <= GPU_MAX_PIXELS
    return header.format == "JPEG" and complete and plain and fits and not narrow


def decode_jpegs(images: Sequence[bytes], device: torch.device) -> list[Tensor]:
    """Decode JPEGs on the GPU; uint8 [3, height, width] each.

    Raises:
        RuntimeError: one of them cannot be decoded.
    """
    from torchvision.io import ImageReadMode

    sources = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in images]
    # The operator itself: its wrapper warns that torchcodec will replace it in later releases.
    decode = torch.ops.image.decode_jpegs_cuda
    decoded: list[Tensor] = decode(sources, ImageReadMode.RGB.value, device)
    return decoded


@torch.inference_mode()
def resize(image: Tensor, size: int) -> Tensor:
    """Resize the shorter side to `size` and cut out the centre; uint8 [size, size, 3].

    The same geometry as `deployments.model.pictures.image.to_pixels`, on the device of the image.
    """
    height, width = image.shape[1:]
    if width <= height:
        shape = (int(size * height / width), size)
    else:
        shape = (size, int(size * width / height))
    resized = F.interpolate(image[None].float(), shape, mode="bicubic", antialias=True)[0]
    top, left = (round((side - size) / 2) for side in shape)
    crop = resized[:, top : top + size, left : left + size]
    return crop.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)


def _open(image: Encoded, max_pixels: int) -> Image.Image:
    if isinstance(image, bytes):
        return open_image(image, max_pixels)
    check_size(image, max_pixels)
    return image


def _attempt(call: Callable[..., Result], *args: object) -> Result | ImageError:
    """Return the error of an image instead of raising it."""
    try:
        return call(*args)
    except ImageError as error:
        return error


def _gpu_fault(device: torch.device) -> str:
    """Return why JPEGs cannot be decoded on the device, or nothing: one is tried."""
    if device.type != "cuda":
        return "it is no GPU"
    probe = BytesIO()
    Image.new("RGB", (16, 16)).save(probe, "JPEG")
    try:
        decode_jpegs([probe.getvalue()], device)
    except (AttributeError, ImportError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""
