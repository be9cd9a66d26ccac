"""Bytes to pixels, against Pillow with explicit arithmetic and against torchvision."""

import io
import struct
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms.functional import InterpolationMode, center_crop, resize

from deployments.model.errors import ImageError
from deployments.model.pictures.image import FORMATS, MAX_PIXELS, check_size, open_image, to_pixels

SIDE = 120
SIZES = [(1, 1), (2, 1), (1, 3), (7, 5), (119, 120), (120, 120), (121, 120), (120, 121)]
SIZES += [(121, 301), (400, 150), (333, 250), (250, 333), (241, 240), (1000, 13), (77, 640)]
ORIENTATION = 0x0112


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    random = np.random.default_rng(width * 1009 + height)
    return random.integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def specified(rgb: Image.Image, side: int) -> np.ndarray:
    """The specification, step by step: shorter side, truncated longer side, rounded centre."""
    short, long = sorted(rgb.size)
    longer = int(side * long / short)
    width, height = (side, longer) if rgb.size[0] <= rgb.size[1] else (longer, side)
    array = np.asarray(rgb.resize((width, height), Image.Resampling.BICUBIC))
    top, left = round((height - side) / 2), round((width - side) / 2)
    return array[top : top + side, left : left + side]


@pytest.mark.parametrize("size", SIZES)
def test_pixels_follow_the_specification(size) -> None:
    """Every shape gives the pixels of the written steps, and of torchvision's transforms."""
    image = Image.fromarray(noise(*size))
    pixels = to_pixels(open_image(encoded(image)), SIDE)
    assert pixels.shape == (SIDE, SIDE, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, specified(image, SIDE))
    oracle = center_crop(resize(image, SIDE, InterpolationMode.BICUBIC), [SIDE, SIDE])
    np.testing.assert_array_equal(pixels, np.asarray(oracle))


def test_the_comparison_tells_wrong_steps_apart() -> None:
    """Squashing, or a crop one pixel off, gives other pixels."""
    image = Image.fromarray(noise(400, 150))
    pixels = to_pixels(image, SIDE)
    squashed = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    bilinear = np.asarray(center_crop(resize(image, SIDE), [SIDE, SIDE]))
    off = np.asarray(image.resize((320, SIDE), Image.Resampling.BICUBIC))[:, 101 : 101 + SIDE]
    assert all((pixels != other).any() for other in (squashed, bilinear, off))


def palette() -> Image.Image:
    return Image.fromarray(noise(90, 70)).quantize(17)


def rgba() -> Image.Image:
    return Image.fromarray(noise(90, 70, 4))


@pytest.mark.parametrize("make", [palette, rgba])
def test_other_modes_become_rgb_first(make) -> None:
    """Palette and transparent pictures are converted before they are resized."""
    image = make()
    pixels = to_pixels(open_image(encoded(image)), SIDE)
    np.testing.assert_array_equal(pixels, specified(image.convert("RGB"), SIDE))


def test_alpha_is_dropped_and_not_blended() -> None:
    """A fully transparent picture keeps the colours under its alpha."""
    colours = noise(60, 60)
    hidden = np.dstack([colours, np.zeros((60, 60), np.uint8)])
    pixels = to_pixels(open_image(encoded(Image.fromarray(hidden))), SIDE)
    np.testing.assert_array_equal(pixels, to_pixels(Image.fromarray(colours), SIDE))


def test_exif_rotation_is_not_applied() -> None:
    """A JPEG marked as rotated gives the pixels as stored."""
    image = Image.fromarray(noise(64, 48))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    marked = open_image(encoded(image, "JPEG", exif=exif))
    assert marked.getexif()[ORIENTATION] == 6
    plain = open_image(encoded(image, "JPEG"))
    np.testing.assert_array_equal(to_pixels(marked, SIDE), to_pixels(plain, SIDE))


LOSSLESS = ("PNG", "WEBP", "GIF", "BMP", "TIFF", "ICO", "PPM")


@pytest.mark.parametrize("kind", [*LOSSLESS, "JPEG", "AVIF"])
def test_common_formats_are_read(kind) -> None:
    """Each accepted format gives a picture; lossless ones give the very pixels."""
    image = Image.fromarray(np.full((64, 64, 3), (200, 30, 90), np.uint8))
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = to_pixels(open_image(encoded(image, kind, **options)), SIDE)
    assert np.abs(pixels.astype(int) - (200, 30, 90)).max() <= (0 if kind in LOSSLESS else 3)


@pytest.mark.parametrize(
    "data",
    [
        b"a text file called picture.jpg",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        encoded(Image.new("RGB", (9, 9)), "EPS"),
        encoded(Image.new("RGB", (9, 9)), "PDF"),
        encoded(Image.new("RGB", (9, 9)), "TGA"),
        b"\xff\xd8\xff",
    ],
    ids=["text", "svg", "eps", "pdf", "tga", "jpeg-start"],
)
def test_what_is_no_accepted_picture_is_refused(data) -> None:
    """Text, vector formats and formats outside the list are told from pictures."""
    with pytest.raises(ImageError, match=f"the {len(data):,} bytes are not a readable image"):
        open_image(data)


def test_no_bytes_are_refused() -> None:
    """An empty file has its own message."""
    with pytest.raises(ImageError, match="empty"):
        open_image(b"")


@pytest.mark.parametrize("kind", FORMATS)
def test_cut_off_files_are_refused(kind) -> None:
    """A file that stops half-way is an error, not a picture with a grey half."""
    data = encoded(Image.fromarray(noise(200, 200)), kind)
    to_pixels(open_image(data), SIDE)
    with pytest.raises(ImageError, match=r"broken|not a readable image"):
        to_pixels(open_image(data[: len(data) // 2]), SIDE)


def png_header(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes that claims any size; its pixels are not there."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(8001, 8000), (9000, 8000), (10000, 10000), (60000, 60000)])
def test_a_bomb_is_refused_by_its_header(size) -> None:
    """More pixels than the limit are refused before any of them is decoded."""
    with warnings.catch_warnings():
        # Pillow itself warns from 89 million pixels on, and raises from twice that.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(ImageError, match=r"too large|64,000,000"):
            open_image(png_header(*size))


def test_the_limit_itself_is_allowed() -> None:
    """A header of exactly the limit passes, one pixel row more does not."""
    assert open_image(png_header(8000, 8000)).size == (8000, 8000)
    with pytest.raises(ImageError, match="10 x 11 = 110 pixels, the limit is 100"):
        check_size(Image.new("RGB", (10, 11)), max_pixels=100)


def test_a_needle_is_refused() -> None:
    """A picture so narrow that resizing its shorter side would explode is an error."""
    widest = MAX_PIXELS // SIDE**2
    with pytest.raises(ImageError, match="crop it first"):
        to_pixels(Image.new("RGB", (widest + 1, 1)), SIDE)
    assert to_pixels(Image.new("RGB", (widest // 8, 1)), SIDE).shape == (SIDE, SIDE, 3)


def icon(inner: bytes, claimed: int = 16) -> bytes:
    """An ICO file with one image, whatever its directory says of it."""
    entry = struct.pack("<BBBBHHII", claimed, claimed, 0, 0, 1, 32, len(inner), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + inner


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_an_icon_that_claims_to_be_small_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch, kind: str
):
    """Pillow decodes an icon when it opens it, so the images inside are looked at before."""
    inner = encoded(Image.new("RGB", (300, 200)), kind)
    if kind == "BMP":  # without its file header, and of twice its height, as in icons
        inner = inner[14:22] + struct.pack("<i", 2 * 200) + inner[26:]
    opened = []
    monkeypatch.setattr(Image, "open", lambda *args, **options: opened.append(args))
    with pytest.raises(ImageError, match=r"300 x 200 .* the limit is 50,000"):
        open_image(icon(inner), max_pixels=50_000)
    assert not opened


def test_an_icon_within_the_limit_is_read():
    """With the pixels of the image inside."""
    image = Image.fromarray(noise(200, 200))
    opened = open_image(icon(encoded(image), claimed=200), max_pixels=60_000)
    np.testing.assert_array_equal(to_pixels(opened, 40), to_pixels(image, 40))


@pytest.mark.parametrize("kind", FORMATS)
def test_no_format_decodes_before_its_size_is_checked(kind: str):
    """Opening a large image takes no memory for its pixels; only the limit's refusal comes."""
    sizes = {"sizes": [(256, 256)]} if kind == "ICO" else {}
    data = encoded(Image.new("RGB", (2000, 2000)), kind, **sizes)
    limit = 60_000 if kind == "ICO" else 3_000_000
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="the limit is"):
            open_image(data, max_pixels=limit)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("error", [MemoryError("no room"), OSError("no file")])
def test_any_error_while_an_image_is_decoded_is_one_of_that_image(
    monkeypatch: pytest.MonkeyPatch, error: Exception
):
    """So that it fails alone, whatever its decoder or the resizer raises."""

    def fails(*_args: object) -> None:
        raise error

    image = open_image(encoded(Image.new("RGB", (50, 50))))
    monkeypatch.setattr(Image.Image, "resize", fails)
    with pytest.raises(ImageError, match="broken"):
        to_pixels(image, 40)
