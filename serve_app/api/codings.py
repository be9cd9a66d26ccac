"""Bodies that a client has compressed, read within the limit of a body that it has not.

What comes out is counted while it is made, so that a few bytes cannot become many.
"""

import importlib.util
import zlib
from collections.abc import Callable

from deployments.errors import BodyTooLargeError, RequestError, UnsupportedCodingError

MAX_CODINGS = 2  # one on top of another
MAX_MEMBERS = 1024  # of a gzip file
AT_ONCE_BYTES = 64 * 1024  # given to zlib
GZIP, ZLIB, RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS


def codings_of(header: str) -> list[str]:
    """Return the codings that a Content-Encoding header names, the last applied first.

    Raises:
        UnsupportedCodingError: one that is not read here, or too many.
    """
    names = [name.strip().lower() for name in header.split(",")]
    names = [name for name in names if name not in ("", "identity")]
    for name in names:
        if name not in READERS:
            raise UnsupportedCodingError(
                f"the body's Content-Encoding is {name[:32]!r}; send {', '.join(taken())}, or the "
                "body as it is"
            )
    if len(names) > MAX_CODINGS:
        raise UnsupportedCodingError(
            f"Content-Encoding names {len(names)} codings; send at most {MAX_CODINGS}"
        )
    return names[::-1]


def decoded(body: bytes, codings: list[str], max_bytes: int) -> bytes:
    """Return the body without its codings.

    Raises:
        BodyTooLargeError: more than `max_bytes`.
        RequestError: broken, cut off, or something behind its end.
    """
    for name in codings:
        try:
            body = READERS[name](body, max_bytes)
        except (zlib.error, OSError) as error:
            raise RequestError(f"the body cannot be read as {name}: {error}") from None
    return body


def taken() -> tuple[str, ...]:
    """Return the codings that are read here."""
    return tuple(name for name in READERS if name != "x-gzip")


def _gunzip(body: bytes, max_bytes: int) -> bytes:
    """Read a gzip file, whose members follow each other."""
    parts: list[bytes] = []
    rest, size = memoryview(body), 0
    for _ in range(MAX_MEMBERS):
        part, rest = _inflate(rest, GZIP, max_bytes, size)
        parts.append(part)
        size += len(part)
        if not rest or (rest[0] == 0 and not rest.tobytes().strip(b"\0")):
            return b"".join(parts)
    raise zlib.error(f"more than {MAX_MEMBERS} members")


def _deflate(body: bytes, max_bytes: int) -> bytes:
    """Read zlib's format, or the bare stream that some clients send under the same name."""
    try:
        data, rest = _inflate(memoryview(body), ZLIB, max_bytes)
    except zlib.error:
        data, rest = _inflate(memoryview(body), RAW, max_bytes)
    if rest:
        raise zlib.error("something follows its end")
    return data


def _inflate(
    body: memoryview, form: int, max_bytes: int, before: int = 0
) -> tuple[bytes, memoryview]:
    """Return what a stream holds, and what follows its end; so many bytes came before it."""
    stream, parts, size = zlib.decompressobj(form), [], before
    for start in range(0, len(body), AT_ONCE_BYTES):  # zlib copies what follows of a piece
        piece = body[start : start + AT_ONCE_BYTES]
        parts.append(stream.decompress(piece, max_bytes + 1 - size))
        size += len(parts[-1])
        _check(size, max_bytes)
        if stream.eof:
            return b"".join(parts), body[start + len(piece) - len(stream.unused_data) :]
    raise zlib.error("it is cut off")


def _unzstd(body: bytes, max_bytes: int) -> bytes:
    import pyarrow as pa

    try:
        with pa.CompressedInputStream(pa.BufferReader(body), "zstd") as stream:
            data: bytes = stream.read(max_bytes + 1)
    except pa.ArrowException as error:
        raise OSError(str(error)) from None
    _check(len(data), max_bytes)
    return data


def _check(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise BodyTooLargeError(
            f"the body is larger than {max_bytes:,} bytes once it is unpacked; send fewer or "
            "smaller items"
        )


Reader = Callable[[bytes, int], bytes]
READERS: dict[str, Reader] = {"gzip": _gunzip, "x-gzip": _gunzip, "deflate": _deflate}
if importlib.util.find_spec("pyarrow"):
    READERS["zstd"] = _unzstd
