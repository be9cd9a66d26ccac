"""Images as bytes, base64, data URIs and files, compared with Python's own base64."""

import asyncio
import base64
import os
import textwrap
from pathlib import Path

import pytest

import serve_app
from deployments.errors import ImageSourceError
from deployments.image_config import ImageConfig
from deployments.images.sources import LARGE_CHARS, ImageSources, decode_base64
from deployments.model.errors import ImageError

GALLERY = sorted((Path(serve_app.__file__).parent / "gallery").glob("*.png"))
CAT = next(path for path in GALLERY if path.name == "cat-face.png")
LIMIT_BYTES = 1_000_000


async def read(source: bytes | str, **settings: object) -> bytes:
    sources = ImageSources(ImageConfig.model_validate(settings))
    try:
        return await sources.read(source)
    finally:
        await sources.close()


async def refusal(source: bytes | str, **settings: object) -> str:
    with pytest.raises(ImageSourceError) as caught:
        await read(source, **settings)
    return str(caught.value)


@pytest.mark.parametrize(
    "data", [pytest.param(path.read_bytes(), id=path.stem) for path in GALLERY[:12]]
)
async def test_every_spelling_of_base64_gives_the_image(data: bytes) -> None:
    """Both alphabets, padded or not, in lines or not, bare or in a data URI: the same bytes."""
    spellings = []
    for text in (base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()):
        spellings += [text, text.rstrip("="), "\r\n".join(textwrap.wrap(text, 76)) + "\n"]
    spellings.append(base64.encodebytes(data).decode())
    for text in spellings:
        for prefix in ("", "data:image/png;base64,", "DATA:image/x-icon;charset=UTF-8;BASE64,"):
            assert await read(prefix + text) == data


@pytest.mark.parametrize(
    "num_bytes", [*range(1, 20), *(LARGE_CHARS * 3 // 4 + x for x in range(-3, 4))]
)
@pytest.mark.parametrize("line", [None, 76, 5])
def test_lengths_and_line_breaks_do_not_matter(num_bytes: int, line: int | None) -> None:
    """Around every remainder, in a thread or not, this decodes what Python's base64 encoded."""
    data = os.urandom(num_bytes)
    text = base64.b64encode(data).decode()
    if line is not None:
        text = "\n".join(text[at : at + line] for at in range(0, len(text), line))
    for spelling in (text, text.rstrip("=\n")):
        assert decode_base64("it", spelling, LIMIT_BYTES) == data


@pytest.mark.parametrize(
    "text",
    [
        "QUJ",  # decodes: the control
        "QUJD=",
        "QU=",
        "QUI==",
        "QUI===",
        "QUJDR",
        "Q",
        "=QUJD",
        "QU=JD",
        "QU==QUJD",
        "QUJD QUJD",
        "QUJD\tQUJD",
        "QUJD\0",
        "QUJ!",
        "QU%2B",
        "QUJ\u00e9",
        "\uff31\uff35\uff2a\uff24",
        "+/-_",
        "a photo of a cat",
        "cat.png",
        "{}",
    ],
)
async def test_what_is_not_base64_is_refused(text: str) -> None:
    """Letters outside of one alphabet, padding that does not fit, and text are no image."""
    if text == "QUJ":
        assert await read(text) == b"AB"
        return
    for source in (text, f"data:image/png;base64,{text}"):
        message = await refusal(source)
        assert "base64" in message
        assert text not in message


async def test_padding_inside_a_large_text_is_refused() -> None:
    """Two padded texts joined are refused where the text is decoded in a thread too."""
    first = base64.b64encode(bytes(LARGE_CHARS * 3 // 4 - 1)).decode()
    assert len(first) == LARGE_CHARS
    assert first.endswith("=")
    assert len(await read(first)) == LARGE_CHARS * 3 // 4 - 1
    assert "'=' before its end" in await refusal(first + "QUJD")


@pytest.mark.parametrize(
    "uri",
    [
        "data:;base64,QUJD",
        "data:application/octet-stream;base64,QUJD",
        "Data:binary/octet-stream;Base64,QUJD",
        "data:image/png; base64,QUJD",
        "data:image/png;charset=utf-8;base64,QUJD",
        "\ufeff data:image/png;base64,QUJD\n",
    ],
)
async def test_the_type_of_a_data_uri_may_say_nothing(uri: str) -> None:
    """A type for any bytes, none at all, blanks, and a byte order mark in front."""
    assert await read(uri) == b"ABC"


@pytest.mark.parametrize(
    "uri",
    [
        "data:image/png;base64",
        "data:image/png,QUJD",
        "data:,QUJD",
        "data:text/plain;base64,QUJD",
        "data:application/pdf;base64,QUJD",
        "data:base64,QUJD",
        "data:image;base64,QUJD",
        "data:xdata:image/png;base64,QUJD",
    ],
)
async def test_other_data_uris_are_refused(uri: str) -> None:
    """Only base64 of an image type is read."""
    assert await read("data:image/png;base64,QUJD") == b"ABC"
    assert "data URI does not begin like data:image/png;base64," in await refusal(uri)


@pytest.mark.parametrize(
    "source", ["", " \n", "=", "data:image/png;base64,", "data:image/png;base64,="]
)
async def test_an_empty_string_is_refused(source: str) -> None:
    """Nothing is no image, and the message says what to send."""
    assert "is empty; send an http, https or s3 URL" in await refusal(source)


@pytest.mark.parametrize("num_bytes", [100, LARGE_CHARS + 100])
async def test_inline_images_have_a_size_limit(num_bytes: int) -> None:
    """The limit itself passes, one byte more is the image's error, however it is sent."""
    for size in (num_bytes, num_bytes + 1):
        data = os.urandom(size)
        text = base64.b64encode(data).decode()
        for source in (data, text, f"data:image/png;base64,{text}", text.rstrip("=")):
            if size == num_bytes:
                assert await read(source, max_image_bytes=num_bytes) == data
            else:
                with pytest.raises(ImageError, match=f"more than {num_bytes:,} bytes"):
                    await read(source, max_image_bytes=num_bytes)


async def test_messages_do_not_repeat_the_image() -> None:
    """Neither a broken nor a too large image shows up in its error."""
    text = base64.b64encode(os.urandom(3000)).decode()
    for source in (text + "!", f"data:image/png;base64,{text}!", f"data:image/png{text}"):
        message = await refusal(source)
        assert text[:8] not in message
        assert len(message) < 250
    with pytest.raises(ImageError) as caught:
        await read(text, max_image_bytes=10)
    assert text[:8] not in str(caught.value)


async def test_large_base64_leaves_the_event_loop_free() -> None:
    """While a large image is decoded, other tasks of the loop run."""
    text = base64.b64encode(bytes(12_000_000)).decode()
    reading = asyncio.create_task(read(text))
    num_turns = 0
    while not reading.done():
        await asyncio.sleep(0)
        num_turns += 1
    assert len(await reading) == 12_000_000
    assert num_turns > 3


@pytest.mark.parametrize(
    "path", ["{cat}", "file://{cat}", "file://localhost{cat}", "FILE:{cat}", "file:/{cat}"]
)
async def test_a_server_reads_no_files(path: str) -> None:
    """Without `local_files` no path is opened, whether plain or a URL."""
    source = path.format(cat=CAT)
    message = await refusal(source)
    assert "files of the server are not read" in message or "not base64" in message


async def test_text_that_is_a_path_is_not_one_to_a_server(tmp_path: Path) -> None:
    """A string that is base64 and also names a file is base64, unless files are asked for."""
    name = "QUJD"
    (tmp_path / name).write_bytes(b"from the file")
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        assert await read(name) == b"ABC"
        assert await read(name, local_files=True) == b"from the file"
        assert await read("QUJE", local_files=True) == b"ABD"
    finally:
        os.chdir(before)


async def test_a_bulk_job_reads_files(tmp_path: Path) -> None:
    """Plain paths and file URLs, escaped or not, give the file's bytes; base64 still works."""
    odd = tmp_path / "a b%#\u00fc.png"
    odd.write_bytes(CAT.read_bytes())
    for source in (str(CAT), f"file://{CAT}", f"file://localhost{CAT}", str(odd), odd.as_uri()):
        assert await read(source, local_files=True) == CAT.read_bytes()
    text = base64.b64encode(CAT.read_bytes()).decode()
    assert await read(text, local_files=True) == CAT.read_bytes()


async def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    """Folders, devices, pipes and missing files end in an error and never block."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, "/dev/zero"):
        assert "is no regular file" in await refusal(f"file://{path}", local_files=True)
    assert "Is a directory" in await refusal(f"file://{tmp_path}", local_files=True)
    assert "No such file" in await refusal(f"file://{tmp_path}/none", local_files=True)
    assert "another machine" in await refusal("file://host/share/cat.png", local_files=True)
    assert "cannot be read" in await refusal("file:///cat%00.png", local_files=True)
    assert "not base64" in await refusal(f"{tmp_path}/none.png", local_files=True)
    assert "not base64" in await refusal("cat\0.png", local_files=True)


async def test_files_have_a_size_limit(tmp_path: Path) -> None:
    """A file at the limit is read, one byte more is refused."""
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    assert len(await read(str(path), local_files=True, max_image_bytes=1000)) == 1000
    message = await refusal(str(path), local_files=True, max_image_bytes=999)
    assert "more than 999 bytes" in message


@pytest.mark.parametrize("url", ["ftp://cat.example/a", "gopher:x", "C:\\cat.png", "mailto:a@b.c"])
async def test_other_schemes_are_refused(url: str) -> None:
    """A URL that is none of the known ones is named as such, not taken for base64."""
    assert "URL of a scheme that is not read" in await refusal(url)


def test_construction_needs_no_event_loop() -> None:
    """Sources can be made before there is a loop, and used and closed in one later."""
    sources = ImageSources(ImageConfig())
    data = os.urandom(100)

    async def use() -> bytes:
        image = await sources.read(data)
        await sources.close()
        return image

    assert asyncio.run(use()) == data
