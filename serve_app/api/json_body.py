"""The JSON object of a request's body, of bounded depth, emoji that were cut in two mended.

Lines of batches are read by it too: each is what HTTP would have of it.
"""

import codecs
import re
from collections.abc import Iterable
from typing import Any

import orjson

from deployments.errors import RequestError
from serve_app.api.items import type_of

CONTAINERS = frozenset((dict, list))

# An escape of a JSON string: a pair of surrogates, half a pair, or another one's first two letters.
ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[dD][89a-fA-F][0-9a-fA-F]{2}|.)",
    re.DOTALL,
)
HALF_CHARS = len(rb"\ud83d")
SURROGATE_BYTES = re.compile(rb"(?:\xed[\xa0-\xbf][\x80-\xbf])+")


def read_object(body: bytes, max_depth: int) -> dict[str, object]:
    """Return the JSON object of a body.

    Raises:
        RequestError: not JSON, not an object, or nested too deeply.
    """
    try:
        data = loads(body)
    except orjson.JSONDecodeError as error:
        if not _is_utf8(body):
            raise RequestError("the body is not in UTF-8; send JSON in UTF-8") from None
        raise RequestError(f"the body is not valid JSON: {error.msg}") from None
    if not isinstance(data, dict):
        raise RequestError(f"the body must be a JSON object, not {type_of(data)}")
    level: list[Any] = [data]
    for _ in range(max_depth):
        level = [nested for value in level for nested in _nested(value)]
        if not level:
            return data
    raise RequestError(f"the body is nested more than {max_depth} levels deep")


def loads(body: bytes) -> object:
    """Read JSON; half a surrogate pair, as of an emoji cut in two, becomes U+FFFD.

    Raises:
        orjson.JSONDecodeError: not JSON.
    """
    body = body.removeprefix(codecs.BOM_UTF8)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        mended = SURROGATE_BYTES.sub(_whole_characters, ESCAPE.sub(_whole_escape, body))
        if mended == body:
            raise
        return orjson.loads(mended)


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def _whole_escape(found: re.Match[bytes]) -> bytes:
    return b"\\ufffd" if found[0][:2] == b"\\u" and len(found[0]) == HALF_CHARS else found[0]


def _whole_characters(found: re.Match[bytes]) -> bytes:
    """Return UTF-8 for surrogates that were written in UTF-8 each by itself."""
    halves = found[0].decode("utf-8", "surrogatepass").encode("utf-16-le", "surrogatepass")
    return halves.decode("utf-16-le", "replace").encode()


def _nested(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    """Return the objects and lists inside of one; long lists of anything else pass quickly."""
    children = value.values() if isinstance(value, dict) else value
    if CONTAINERS.isdisjoint(map(type, children)):
        return ()
    return [child for child in children if type(child) in CONTAINERS]
