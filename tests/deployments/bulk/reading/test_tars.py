from pathlib import Path
from typing import Any

import pytest

from deployments.bulk.reading import tars
from deployments.model.errors import OptionError

MEMBERS = {
    "a/001.jpg": b"one",
    "a/001.txt": b"first",
    "a/002.json": b'{"x": 1}',
    "a/" + "long" * 60 + ".png": b"three",
    "b/001.caption": "h\u00e9llo".encode(),
}


@pytest.mark.parametrize("rows", [1, 2, 3, 10])
def test_samples_are_whole_in_any_cut(tmp_path: Path, inputs: Any, rows: int) -> None:
    """Members of one key are one sample, also under names too long for a plain header."""
    path = inputs.tar(tmp_path / "a.tar", MEMBERS)
    data = path.read_bytes()
    found = []
    for start, stop, count in tars.spans(str(path), rows):
        part = tars.read(data[start:stop])
        assert len(part) == count <= rows
        found += part
    assert found == [
        {"key": "a/001", "image": b"one", "text": "first"},
        {"key": "a/002", "json": '{"x": 1}'},
        {"key": "a/" + "long" * 60, "image": b"three"},
        {"key": "b/001", "text": "h\u00e9llo"},
    ]


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    """The message names the file."""
    path = tmp_path / "a.tar"
    path.write_bytes(b"no tar" * 200)
    with pytest.raises(OptionError, match=r"a\.tar.*no readable tar"):
        list(tars.spans(str(path), 1))
