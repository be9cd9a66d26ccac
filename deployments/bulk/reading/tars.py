"""Where the samples of a WebDataset tar lie, and how they are read.

Members of one name up to the first dot of the file's name are a sample and lie together.
"""

import io
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath

from deployments.bulk.reading.files import open_input
from deployments.model.errors import OptionError

END_BLOCKS = b"\0" * 1024  # what ends a tar
KEY, TEXT, IMAGE, JSON = "key", "text", "image", "json"
COLUMNS = (KEY, TEXT, IMAGE, JSON)
TEXT_ENDS = ("txt", "text", "caption")
IMAGE_ENDS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")


def split_name(name: str) -> tuple[str, str]:
    """Return the key of a member and its extension."""
    path = PurePosixPath(name)
    base, _, extension = path.name.partition(".")
    return str(path.with_name(base)) if base else name, extension.lower()


def spans(url: str, rows: int) -> Iterator[tuple[int, int, int]]:
    """Yield (first byte, byte after the last, samples) of runs of at most `rows` samples.

    Raises:
        OptionError: not a tar, or one that is cut off.
    """
    first, count, key = 0, 0, None
    try:
        with open_input(url) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # it keeps them all otherwise
                if not member.isfile():
                    continue
                name = split_name(member.name)[0]
                if name != key and count == rows:
                    yield first, member.offset, count
                    first, count = member.offset, 0
                count += name != key
                key = name
            end = archive.offset
    except (tarfile.TarError, OSError) as error:
        raise OptionError(f"{url!r} is no readable tar: {error}") from error
    if count:
        yield first, end, count


def read(data: bytes) -> list[dict[str, object]]:
    """Return the samples of a run of whole members."""
    samples: dict[str, dict[str, object]] = {}
    with tarfile.open(fileobj=io.BytesIO(data + END_BLOCKS), mode="r:") as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is None:
                continue
            key, extension = split_name(member.name)
            sample = samples.setdefault(key, {KEY: key})
            value = content.read()
            if extension in IMAGE_ENDS:
                sample[IMAGE] = value
            elif extension in TEXT_ENDS:
                sample[TEXT] = value.decode("utf-8", errors="surrogateescape")
            elif extension == "json":
                sample[JSON] = value.decode("utf-8", errors="surrogateescape")
    return list(samples.values())
