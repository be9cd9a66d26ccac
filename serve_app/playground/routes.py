"""The playground: one page at `/`, its files, and the gallery, as routes that hold no state.

Every address in the page is relative, so it works below any route prefix.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from serve_app import gallery

FOLDER = Path(__file__).parent
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
PAGE = "index.html"
PARTS = {path.name for path in FOLDER.iterdir() if path.suffix in (".css", ".js", ".svg")}

ASK_AGAIN = "no-cache"  # with the ETag: 304 until a new version is installed
ONE_DAY = "public, max-age=86400"

# Nothing but this server: no inline script, no other host, no frame around the page.
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True)
class Asset:
    """A file as it is sent."""

    content: bytes
    media_type: str
    etag: str

    def answer(self, request: Request, cache_control: str) -> Response:
        """Return the file, or 304 where the browser has it."""
        headers = HEADERS | {"etag": self.etag, "cache-control": cache_control}
        known = request.headers.get("if-none-match", "").split(",")
        if self.etag in (tag.strip().removeprefix("W/") for tag in known):
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers=headers, media_type=self.media_type)


def routes() -> list[BaseRoute]:
    """Return the routes of the page, its parts, and the gallery."""
    return [
        Route("/", page),
        Route("/playground/{file}", part),
        Route("/gallery.json", gallery_list),
        Route("/gallery/{file}", gallery_image),
    ]


async def page(request: Request) -> Response:
    """Answer `GET /`."""
    return _asset(FOLDER / PAGE).answer(request, ASK_AGAIN)


async def part(request: Request) -> Response:
    """Answer `GET /playground/{file}`: scripts, styles and the icon."""
    return _named(request, FOLDER, PARTS).answer(request, ASK_AGAIN)


async def gallery_list(request: Request) -> Response:
    """Answer `GET /gallery.json`: the images' files and their names in 16 languages."""
    return _asset(gallery.FOLDER / "gallery.json").answer(request, ASK_AGAIN)


async def gallery_image(request: Request) -> Response:
    """Answer `GET /gallery/{file}`."""
    return _named(request, gallery.FOLDER, _gallery_files()).answer(request, ONE_DAY)


def _named(request: Request, folder: Path, files: set[str]) -> Asset:
    """Return the file that the path names, if it is one of those that are meant to be served.

    Raises:
        HTTPException: 404, any other name.
    """
    name = request.path_params["file"]
    if name not in files:
        raise HTTPException(404, "no such file")
    return _asset(folder / name)


@cache
def _asset(path: Path) -> Asset:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:32]
    return Asset(content, MEDIA_TYPES[path.suffix], f'"{digest}"')


@cache
def _gallery_files() -> set[str]:
    return {image.file for image in gallery.gallery_images()}
