"""What of a picture is looked at beside its stored colours: depth, rotation, transparency.

As published, rotation by EXIF is not applied and transparency is dropped. Sixteen-bit grey is the
one difference: as published it is clipped, which makes nearly all of it white.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from deployments.model.errors import ImageError

ORIENTATION = 0x0112
PHOTOMETRIC, BITS_PER_SAMPLE = 262, 258  # TIFF tags
MIN_IS_WHITE = 0
TURNS: Mapping[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DEEP_GREY = ("I", "F")  # and "I;16" in any byte order


@dataclass(frozen=True)
class Seeing:
    """How pictures are read.

    Attributes:
        depth: `scale` maps grey of 9 to 16 bits to 8; `published` clips it.
        exif: rotate and mirror as EXIF says.
        background: a colour to put behind transparent parts; None drops the transparency.
    """

    depth: Literal["scale", "published"] = "scale"
    exif: bool = False
    background: str | None = None

    def rgb(self, image: Image.Image) -> Image.Image:
        """Return an image's RGB, not turned yet.

        Raises:
            ImageError: numbers of no fixed range.
        """
        if self.depth == "scale" and image.mode.startswith(DEEP_GREY):
            return _shallow(image).convert("RGB")
        if self.background is not None and image.has_transparency_data:
            whole = Image.new("RGBA", image.size, self.background)
            return Image.alpha_composite(whole, image.convert("RGBA")).convert("RGB")
        return image.convert("RGB")

    def turn(self, image: Image.Image) -> Image.Transpose | None:
        """Return how EXIF says that an image is turned to be looked at, if that is asked for.

        Pillow turns a TIFF while it reads it; once that is loaded, there is nothing left to turn.
        """
        if not self.exif:
            return None
        try:
            return TURNS.get(image.getexif().get(ORIENTATION))
        except Exception:  # noqa: BLE001 - broken EXIF raises many types, and says nothing
            return None


AS_SERVED = Seeing()


def _shallow(image: Image.Image) -> Image.Image:
    """Return 8-bit grey for deeper grey whose range is known.

    Raises:
        ImageError: floats, or integers of 32 bits: nothing says which value is white.
    """
    # Any: Pillow's TIFF tags.
    tags: Any = getattr(image, "tag_v2", {})
    bits = int(np.max(tags.get(BITS_PER_SAMPLE, 16)))
    of_16_bits = image.mode.startswith("I;16") or (
        image.mode == "I" and image.format in ("PNG", "PPM")
    )
    if not of_16_bits or bits > 16:
        raise ImageError(
            f"the image's values are {'floats' if image.mode == 'F' else 'integers of 32 bits'}, "
            "and nothing says which is white; save it with 8 or 16 bits"
        )
    values = np.asarray(image).astype(np.uint32)
    most = (1 << bits) - 1
    grey = ((np.minimum(values, most) * 255 + most // 2) // most).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == MIN_IS_WHITE:
        grey = 255 - grey
    return Image.fromarray(grey)
