"""Encoded bytes to pixels, as the published preprocessing does it; needs no torch.

RGB first (`seeing` says how), then bicubic with the shorter side at the model's size, then the
centre. Standardising is left to the tower, so that uint8 travels.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deployments.model.errors import ImageError
from deployments.model.pictures.seeing import AS_SERVED, Seeing

# Decoders of raster formats only; Pillow's others (EPS and the like) may start programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "ICO", "PPM")
MAX_PIXELS = 64_000_000
DRAFT_OVERSAMPLING = 2

ICON, PNG = b"\0\0\1\0", b"\x89PNG\r\n\x1a\n"

Pixels = NDArray[np.uint8]

Image.init()  # registers the decoders; `Image.open` would know only five of them by name


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read the header of an encoded image; its pixels are not decoded.

    Raises:
        ImageError: not one of `FORMATS`, or more than `max_pixels` pixels.
    """
    if not data:
        raise ImageError("the image is empty (0 bytes)")
    if data.startswith(ICON):
        _check_icon(data, max_pixels)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"the image is too large: {error}") from error
    except Exception as error:
        raise ImageError(
            f"the {len(data):,} bytes are not a readable image ({', '.join(FORMATS)})"
        ) from error
    check_size(image, max_pixels)
    return image


def _check_icon(data: bytes, max_pixels: int) -> None:
    """Check the images inside of an ICO file, which Pillow decodes when it opens it.

    What the file's own directory says of their sizes need not be true. Each is a PNG, or a BMP
    without its file header and of twice its height.
    """
    number = int.from_bytes(data[4:6], "little")
    for entry in (data[start : start + 16] for start in range(6, 6 + 16 * number, 16)):
        offset = int.from_bytes(entry[12:16], "little")
        head = data[offset : offset + 24]
        if head.startswith(PNG):
            width, height = (int.from_bytes(head[x : x + 4], "big") for x in (16, 20))
        else:
            width, height = (int.from_bytes(head[x : x + 4], "little") for x in (4, 8))
            height //= 2
        _check_pixels(width, height, max_pixels)


def check_size(image: Image.Image, max_pixels: int = MAX_PIXELS) -> None:
    """Raise ImageError for more pixels, as stored or as resized, than the limit."""
    _check_pixels(*image.size, max_pixels)


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(
            f"the image is {width} x {height} = {width * height:,} pixels, "
            f"the limit is {max_pixels:,}; send a smaller one"
        )


def to_pixels(
    image: Image.Image,
    size: int,
    max_pixels: int = MAX_PIXELS,
    draft: bool = False,
    seeing: Seeing = AS_SERVED,
) -> Pixels:
    """Decode, resize and crop to uint8 [size, size, 3].

    With `draft`, libjpeg halves a large JPEG, once to thrice, while it decodes it, to no less than
    `DRAFT_OVERSAMPLING` times `size`: several times faster, and no longer exact.

    Raises:
        ImageError: the data is broken, or the image so narrow that resizing it would take more
            than `max_pixels` pixels.
    """
    check_size(image, max_pixels)
    width, height = image.size
    scale = size / min(width, height)
    if max(width, height) * scale * size > max_pixels:
        raise ImageError(
            f"the image is {width} x {height}: with its shorter side at {size} it would have more "
            f"than {max_pixels:,} pixels; crop it first"
        )
    least = DRAFT_OVERSAMPLING * size
    try:
        draft = draft and seeing.turn(image) is None
        drafted = image.draft(None, (least, least)) if draft else None
        rgb = seeing.rgb(image)
        turn = seeing.turn(image)
        if turn is not None:
            rgb = rgb.transpose(turn)
            width, height = rgb.size
        box = drafted[1] if drafted else (0, 0, width, height)
        return _cut(rgb, (width, height), size, box)
    except ImageError:
        raise
    except Exception as error:  # decoders of broken data raise many types
        raise ImageError(f"the image is broken: {error}") from error


def _cut(
    rgb: Image.Image, original: tuple[int, int], size: int, box: tuple[float, float, float, float]
) -> Pixels:
    """Resize what is in the box as the original would be, cut out the centre."""
    width, height = original
    if width <= height:
        resized = (size, int(size * height / width))
    else:
        resized = (int(size * width / height), size)
    rgb = rgb.resize(resized, Image.Resampling.BICUBIC, box)
    # Python's rounding of halves to even is the published behaviour.
    left, top = round((resized[0] - size) / 2), round((resized[1] - size) / 2)
    return np.asarray(rgb.crop((left, top, left + size, top + size)))
