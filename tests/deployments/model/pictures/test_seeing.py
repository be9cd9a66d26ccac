"""Depth, rotation and transparency of pictures, against the same pictures in plain 8 bits."""

import struct

import numpy as np
import pytest
from PIL import Image

from deployments.model.errors import ImageError
from deployments.model.pictures.image import open_image, to_pixels
from deployments.model.pictures.seeing import ORIENTATION, Seeing
from tests.deployments.model.pictures.test_image import SIDE, encoded, noise, specified


def grey(dtype: type = np.uint8) -> np.ndarray:
    return np.arange(90 * 70).reshape(70, 90).astype(np.uint8).astype(dtype)


def tiff(values: np.ndarray, order: str = "<", photometric: int = 1, bits: int = 16) -> bytes:
    """Write a 16-bit grey TIFF by hand, as Pillow cannot: byte order, white at 0, 12 bits used."""
    raw = values.astype(f"{order}u2").tobytes()
    height, width = values.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8)]
    tags += [(277, 1), (278, height), (279, len(raw))]
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(raw)) + raw
    out += struct.pack(f"{order}H", len(tags))
    for tag, value in tags:
        out += struct.pack(f"{order}HHII", tag, 4, 1, value)
    return out + bytes(4)


DEEP = grey(np.uint16) * 257


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(DEEP)),
        encoded(Image.fromarray(DEEP), "TIFF"),
        tiff(DEEP, ">"),
        tiff(65535 - DEEP, photometric=0),
        b"P5 90 70 65535\n" + DEEP.astype(">u2").tobytes(),
    ],
    ids=["png", "tiff", "big endian", "white is 0", "pgm"],
)
def test_grey_of_16_bits_is_what_people_see(data) -> None:
    """The pixels of the same picture in 8 bits; as published, nearly all would be white."""
    expected = specified(Image.fromarray(grey()).convert("RGB"), SIDE)
    np.testing.assert_array_equal(to_pixels(open_image(data), SIDE), expected)
    published = to_pixels(open_image(data), SIDE, seeing=Seeing(depth="published"))
    assert (published != expected).mean() > 0.9


@pytest.mark.parametrize("values", [grey(np.float32) / 255, grey(np.int32)])
def test_numbers_of_no_known_range_are_refused(values) -> None:
    """Floats and 32-bit integers: nothing says which value is white."""
    data = encoded(Image.fromarray(values), "TIFF")
    with pytest.raises(ImageError, match="save it with 8 or 16 bits"):
        to_pixels(open_image(data), SIDE)
    assert to_pixels(open_image(data), SIDE, seeing=Seeing(depth="published")).shape[0] == SIDE


@pytest.mark.parametrize(("orientation", "turn"), [(3, 180), (6, 90), (8, 270)])
def test_exif_is_applied_only_where_it_is_asked_for(orientation, turn) -> None:
    """With the option the upright picture, drafted or not; without, the stored one."""
    upright = Image.fromarray(noise(200, 100))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(upright.rotate(turn, expand=True), exif=exif.tobytes())
    clear = upright.rotate(turn, expand=True)
    clear.putalpha(255)
    both = Seeing(exif=True, background="white")
    turned = to_pixels(open_image(encoded(clear, exif=exif.tobytes())), SIDE, seeing=both)
    np.testing.assert_array_equal(turned, specified(upright, SIDE))
    tiff = open_image(encoded(upright.rotate(turn, expand=True), "TIFF", exif=exif.tobytes()))
    turned = to_pixels(tiff, SIDE, seeing=Seeing(exif=True))
    np.testing.assert_array_equal(turned, specified(upright, SIDE))
    for draft in (False, True):
        seen = to_pixels(open_image(data), SIDE, draft=draft, seeing=Seeing(exif=True))
        np.testing.assert_array_equal(seen, specified(upright, SIDE))
    stored = specified(upright.rotate(turn, expand=True), SIDE)
    np.testing.assert_array_equal(to_pixels(open_image(data), SIDE), stored)


def test_broken_exif_turns_nothing() -> None:
    """A file that says nonsense of its orientation is read as it is stored."""
    image = Image.fromarray(noise(90, 70))
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff"):
        data = encoded(image, exif=exif)
        pixels = to_pixels(open_image(data), SIDE, seeing=Seeing(exif=True))
        np.testing.assert_array_equal(pixels, specified(image, SIDE))


def test_a_background_shows_through_where_it_is_asked_for() -> None:
    """A transparent picture becomes the background; opaque ones stay as they are."""
    clear = Image.fromarray(np.dstack([noise(60, 60), np.zeros((60, 60), np.uint8)]))
    white = Seeing(background="white")
    assert (to_pixels(open_image(encoded(clear)), SIDE, seeing=white) == 255).all()
    opaque = open_image(encoded(Image.fromarray(noise(60, 60))))
    np.testing.assert_array_equal(to_pixels(opaque, SIDE, seeing=white), to_pixels(opaque, SIDE))
