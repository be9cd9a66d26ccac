"""Hosts that answer wrongly, do not answer, or are not who they say they are."""

import asyncio
import gzip
import ssl
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from deployments.errors import ImageSourceError

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


@pytest.mark.parametrize(
    "page",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\nConnection: close\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nsecret",
        b"HTTP/1.1 200 OK\r\nContent-Length: ten\r\n\r\nsecretsecr",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nsecret\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nsecret\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n500\r\nsecret",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nsecretTOOLONG\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X%d: y\r\n" % i for i in range(20_000)) + b"\r\n",
        b"HTTP/1.1 200 OK\r\nbroken header\r\n\r\n",
        b"HTTP/9.9 999999 OK\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"+PONG\r\n-ERR secret\r\n",
        b"\x16\x03\x01\x00\x00" + bytes(100),
        b"",
        b"HTTP/1.1 302 Found\r\nLocation: \xff\xfe://\x80\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://\xed\xa0\x80/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://%zz/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: \r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: \xff\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_a_broken_answer_is_the_hosts_fault(site: Any, page: bytes) -> None:
    """Lies about the length, broken chunks and other protocols end in one kind of error."""

    async def broken(_: object, __: Reader, writer: Writer) -> None:
        writer.write(page)
        writer.close()

    site.pages = {"/cat.png": broken}
    message = await site.refusal(fetch_timeout_s=2)
    assert " cannot be downloaded: " in message
    assert "took longer" not in message
    assert "secret" not in message


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """100 MB of zeros, packed."""
    return gzip.compress(bytes(100_000_000), compresslevel=1)


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate", "br", "zstd", "identity, gzip"])
async def test_a_compressed_answer_is_refused(site: Any, bomb: bytes, encoding: str) -> None:
    """A gzip bomb of 100 MB within the byte limit is not unpacked; so is any other encoding."""
    site.pages["/cat.png"] = site.answer(bomb, Content_Encoding=encoding)
    tracemalloc.start()
    try:
        message = await site.refusal(max_image_bytes=len(bomb) + 1)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert "compressed" in message


async def test_an_identity_encoding_passes(site: Any) -> None:
    """Hosts that spell out that they do not compress are believed."""
    site.pages["/cat.png"] = site.answer(site.cat, Content_Encoding="identity")
    assert await site.fetch() == site.cat


async def test_a_host_that_never_accepts_is_left_early(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time to connect has its own, shorter limit."""

    async def never(*_):
        await asyncio.sleep(30)

    monkeypatch.setattr(asyncio.selector_events.BaseSelectorEventLoop, "sock_connect", never)
    message = await site.refusal(connect_timeout_s=0.1)
    assert message.endswith("its host did not connect within 0.1 s")


async def test_a_closed_port_is_named_without_its_address(site: Any) -> None:
    """No server at the port: the error has no address that the caller did not send."""
    sources = site.sources(ports=(1,))
    with pytest.raises(ImageSourceError, match="does not accept connections") as caught:
        await sources.read("http://cat.example:1/cat.png")
    assert "127.0.0.1" not in str(caught.value)
    await sources.close()


def write_certificate(folder: Path, name: str) -> Path:
    """Write a self-signed certificate for a host name and its key to one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, *form)
    path = folder / "host.pem"
    path.write_bytes(pem + certificate.public_bytes(serialization.Encoding.PEM))
    return path


async def test_tls_certificates_are_checked(
    site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate must be trusted and be the name's, though an address is connected to."""
    path = write_certificate(tmp_path, "cat.example")
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_side.load_cert_chain(path)
    site.pages["/cat.png"] = site.answer(site.cat)
    server = await asyncio.start_server(site.serve, "127.0.0.1", 0, ssl=server_side)
    port = server.sockets[0].getsockname()[1]

    async def read(host: str) -> bytes:
        sources = site.sources(ports=(port,))
        try:
            return await sources.read(f"https://{host}:{port}/cat.png")
        finally:
            await sources.close()

    untrusted = "shows no TLS certificate that can be trusted"
    with pytest.raises(ImageSourceError, match=untrusted):
        await read("cat.example")
    trusting = ssl.create_default_context(cafile=str(path))
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", trusting)
    assert await read("cat.example") == site.cat
    with pytest.raises(ImageSourceError, match=untrusted):
        await read("dog.example")
    server.close()
