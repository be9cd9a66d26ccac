"""The part of the configuration that says where images may come from, and how they are read."""

from typing import Annotated, Literal

from PIL import ImageColor
from pydantic import Field, field_validator

from deployments.checked import MIB, Folder, Frozen, Host, Network, Port, PositiveFloat, PositiveInt
from deployments.model.pictures.seeing import Seeing


class ImageConfig(Frozen):
    """Where images may come from, and how large they may be."""

    max_image_bytes: PositiveInt = 20 * MIB
    max_pixels: PositiveInt = 64_000_000
    fetch: bool = True
    """Download http(s) URLs at all."""
    fetch_timeout_s: PositiveFloat = 10
    connect_timeout_s: PositiveFloat = 3
    max_redirects: Annotated[int, Field(ge=0)] = 3
    max_fetches: PositiveInt = 64
    max_fetches_per_host: PositiveInt = 16
    ports: tuple[Port, ...] = (80, 443)
    allow_hosts: tuple[Host, ...] = ()
    """If not empty, only these hosts and their subdomains are fetched from."""
    deny_hosts: tuple[Host, ...] = ()
    allow_networks: tuple[Network, ...] = ()
    """Networks in CIDR form that are fetched from although they are not public."""
    s3_buckets: tuple[str, ...] = ()
    """Buckets that `s3://` images may come from; none by default."""
    file_roots: tuple[Folder, ...] = ()
    """Folders of the Routers' machines that `file://` images may come from; none by default."""
    depth: Literal["scale", "published"] = "scale"
    """Grey of 16 bits: `scale` reads it as people see it, `published` clips it to white."""
    exif: bool = False
    """Rotate as EXIF says; the published preprocessing does not."""
    background: str | None = None
    """Put this colour, such as `white`, behind transparent parts; as published they show the
    colours below, often black."""
    local_files: bool = False
    """Read `file://` and plain paths: for bulk jobs only, never for a server."""

    @property
    def seeing(self) -> Seeing:
        """How the vision tower reads pictures; part of its fingerprint."""
        return Seeing(self.depth, self.exif, self.background)

    @field_validator("background")
    @classmethod
    def _check_background(cls, colour: str | None) -> str | None:
        if colour is not None:
            ImageColor.getrgb(colour)
        return colour
