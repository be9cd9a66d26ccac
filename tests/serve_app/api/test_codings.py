"""Compressed bodies: what is read, what is refused, and that bombs are not unpacked."""

import gzip
import tracemalloc
import zlib

import pyarrow as pa
import pytest

from deployments.errors import BodyTooLargeError, RequestError, UnsupportedCodingError
from serve_app.api.codings import codings_of, decoded

BODY = b'{"input": "a red apple"}' * 100
LIMIT = 10_000


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


PACKED = {
    "gzip": gzip.compress(BODY),
    "x-gzip": gzip.compress(BODY[:100]) + gzip.compress(BODY[100:]),
    "deflate": zlib.compress(BODY),
    "Deflate": raw_deflate(BODY),
    "zstd": zstd(BODY),
    "gzip, zstd": zstd(gzip.compress(BODY)),
    "identity": BODY,
}


@pytest.mark.parametrize(("header", "packed"), PACKED.items(), ids=PACKED)
def test_a_packed_body_is_read(header, packed):
    """Each coding, several members, both forms of deflate, one coding on another."""
    assert decoded(packed, codings_of(header), LIMIT) == BODY


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, raw_deflate, zstd])
def test_a_bomb_is_refused_before_it_goes_off(pack):
    """64 MiB of zeros in a few bytes: refused, without having them in memory."""
    name = {gzip.compress: "gzip", zstd: "zstd"}.get(pack, "deflate")
    bomb = pack(bytes(64 << 20))
    tracemalloc.start()
    with pytest.raises(BodyTooLargeError, match="unpacked"):
        decoded(bomb, [name], LIMIT)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 4 << 20


def test_members_count_together_against_the_limit():
    """A thousand small members are one body; one at the limit passes."""
    at_limit = gzip.compress(bytes(LIMIT // 2)) * 2
    assert len(decoded(at_limit, ["gzip"], LIMIT)) == LIMIT
    with pytest.raises(BodyTooLargeError, match="larger than 10,000 bytes"):
        decoded(at_limit + gzip.compress(b"x"), ["gzip"], LIMIT)


def test_what_follows_a_member_is_not_copied_for_each():
    """A thousand members before 8 MiB: copied for each of them that took seconds."""
    body = gzip.compress(b"x") * 1000 + b"x" * (8 << 20)
    tracemalloc.start()
    with pytest.raises(RequestError, match="gzip"):
        decoded(body, ["gzip"], LIMIT)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1 << 20


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        ("gzip", BODY),
        ("gzip", gzip.compress(BODY)[:-9]),
        ("gzip", gzip.compress(BODY) + b"more"),
        ("deflate", zlib.compress(BODY)[:-5]),
        ("deflate", zlib.compress(BODY) + b"more"),
        ("zstd", BODY),
        ("zstd", zstd(BODY)[:-5]),
    ],
    ids=["plain", "cut", "more", "cut deflate", "more deflate", "plain zstd", "cut zstd"],
)
def test_a_broken_body_is_a_fault_that_names_the_coding(name, packed):
    """Not packed at all, cut off, or with something behind its end."""
    with pytest.raises(RequestError, match=name):
        decoded(packed, [name], LIMIT)


@pytest.mark.parametrize("header", ["br", "gzip, br", "compress", "gzip, gzip, gzip"])
def test_another_coding_is_refused_by_its_name(header):
    """What is not read here, and more than two on top of each other."""
    with pytest.raises(UnsupportedCodingError) as refused:
        codings_of(header)
    assert "at most 2" in str(refused.value) or header.split(", ")[-1] in str(refused.value)
