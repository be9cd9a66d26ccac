"""The playground's files over HTTP."""

import httpx
import pytest


def test_files_have_types_policy_and_caching(url: str) -> None:
    """Each file comes with its type, a policy of this origin only, and 304 when it is known."""
    types = {
        "": "text/html",
        "playground/app.js": "text/javascript",
        "playground/style.css": "text/css",
        "playground/icon.svg": "image/svg+xml",
        "gallery.json": "application/json",
        "gallery/bear.png": "image/png",
    }
    for path, media_type in types.items():
        answer = httpx.get(url + path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].partition(";")[0] == media_type
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        etag = answer.headers["etag"]
        assert httpx.get(url + path, headers={"if-none-match": etag}).status_code == 304
        assert httpx.get(url + path, headers={"if-none-match": '"other"'}).status_code == 200


def test_a_prefix_without_its_slash_leads_to_the_page(url: str) -> None:
    """Relative addresses need the slash, so the browser is sent there."""
    answer = httpx.get(url.removesuffix("/"), follow_redirects=True)
    assert answer.status_code == 200
    assert str(answer.url) == url


@pytest.mark.parametrize(
    "path",
    [
        "playground/index.html",
        "playground/screenshot.png",
        "playground/missing.js",
        "playground/..%2Fplayground.py",
        "playground/%2e%2e%2f%2e%2e%2fpyproject.toml",
        "gallery/..%2Fgallery.json",
        "gallery/NOTICE",
        "gallery/phrases.json",
    ],
)
def test_only_the_listed_files_are_served(url: str, path: str) -> None:
    """Other files of the folders, and paths out of them, are not found."""
    assert httpx.get(url + path).status_code == 404
