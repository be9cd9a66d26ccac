"""WebDataset tars as people make them."""

import gzip
import io
import tarfile
from unittest.mock import Mock

import pytest

from deployments.bulk.reading import tars
from deployments.bulk.reading.blocks import cut_input
from deployments.bulk.reading.tables import BlockReader, Layout
from tests.deployments.bulk.reading.reading import read_all, read_plan

MEMBERS = {
    "a/001.jpg": b"one",
    "a/001.txt": b"first",
    "a/002.json": b'{"x": 1}',
    "a/" + "long" * 60 + ".png": b"three",
    "b/001.caption": "h\u00e9llo".encode(),
}


def columns(table, *names):
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


@pytest.mark.parametrize("rows", [1, 2, 3, 10])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz"])
def test_samples_are_whole_in_any_cut(tmp_path, inputs, rows, name):
    """Members of one key are one sample, also under long names, and in a packed tar."""
    path = inputs.tar(tmp_path / "a.tar", MEMBERS)
    if name != "a.tar":
        (tmp_path / name).write_bytes(gzip.compress(path.read_bytes()))
    table = read_all(tmp_path / name, rows, text="text", image="image", kept=("key", "json"))
    assert columns(table, "key", "image", "text", "json") == [
        ("a/001", b"one", "first", None),
        ("a/002", None, None, '{"x": 1}'),
        ("a/" + "long" * 60, b"three", None, None),
        ("b/001", None, "h\u00e9llo", None),
    ]


def test_members_of_a_sample_may_lie_apart(tmp_path, inputs):
    """As `tar cf x.tar *.png *.txt` puts them; the key decides."""
    names = ["b", "a", "c"]
    members = {f"{x}.png": x.encode() for x in names} | {f"{x}.txt": x.encode() for x in names}
    table = read_all(inputs.tar(tmp_path / "a.tar", members), 2)
    assert columns(table, "key", "image", "text") == [(x, x.encode(), x) for x in names]


def test_hidden_members_links_and_capitals(tmp_path):
    """MacOS's members are none, links are what they name, extensions have no case."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in (("./._a.PNG", b"x"), ("./a.PNG", b"a"), ("__MACOSX/b.png", b"x")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, kind, target in (
            ("b.png", tarfile.LNKTYPE, "./a.PNG"),
            ("sub/c.png", tarfile.SYMTYPE, "../a.PNG"),
            ("d.png", tarfile.SYMTYPE, "gone.png"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    table = read_all(path)
    assert columns(table, "key", "image") == [
        ("a", b"a"),
        ("b", b"a"),
        ("sub/c", b"a"),
        ("d", None),
    ]
    assert "links to 'gone.png'" in table["error"].to_pylist()[3]


def test_a_worker_of_several_looks_at_a_tar_once(tmp_path, inputs, monkeypatch):
    """Samples of blocks that others read are passed over unread."""
    path = inputs.tar(tmp_path / "a.tar", {f"{i}.txt": str(i).encode() for i in range(20)})
    plan = cut_input(str(path), 3)
    looking, reading = (Mock(wraps=x) for x in (tars._samples, tars._row))
    monkeypatch.setattr(tars, "_samples", looking)
    monkeypatch.setattr(tars, "_row", reading)
    reader = BlockReader(Layout.choose(plan, None, None, ("key",)))
    for number in (0, 2, 6, 1):  # a lost worker's block comes late
        keys = [str(i) for i in range(20)][number * 3 : number * 3 + 3]
        assert reader.read(plan.blocks[number])["key"].to_pylist() == keys
    assert (looking.call_count, reading.call_count) == (2, 11)


def test_several_images_of_a_sample_are_named(tmp_path, inputs):
    """It is an error that says how to choose; a chosen one is read."""
    members = {"v1.2.png": b"two", "v1.3.png": b"three", "b.left.jpg": b"left", "b.cls": b"7"}
    path = inputs.tar(tmp_path / "a.tar", members)
    table = read_all(path)
    assert table["image"].to_pylist() == [None, b"left"]
    assert "2.png, 3.png" in table["error"].to_pylist()[0]
    assert "first dot" in table["error"].to_pylist()[0]
    table = read_all(path, image="3.png", kept=("key", "cls"))
    assert columns(table, "key", "3.png", "cls", "error") == [
        ("v1", b"three", None, None),
        ("b", None, "7", None),
    ]


def test_of_a_tar_that_is_cut_off_what_is_whole_is_read(tmp_path, inputs):
    """The loss is named; so is a tar of no bytes, and one that is none."""
    good = inputs.tar(tmp_path / "0.tar", {f"{i}.png": bytes([65 + i]) * 700 for i in range(3)})
    whole = good.read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[: 2 * 1536 - 600])  # within the second member
    (tmp_path / "2.tar").write_bytes(b"")
    (tmp_path / "3.tar").write_bytes(b"no tar" * 200)
    plan = cut_input(str(tmp_path), 10)
    assert sorted(plan.lost) == [str(tmp_path / f"{i}.tar") for i in (1, 2, 3)]
    table = read_plan(plan)
    images = table["image"].to_pylist()
    assert images == [b"A" * 700, b"B" * 700, b"C" * 700, b"A" * 700, None]
    assert "cut off" in table["error"].to_pylist()[4]


@pytest.mark.parametrize("place", ["before a header", "within a header", "a broken header", "tars"])
def test_what_the_end_of_a_tar_keeps_back_is_named(tmp_path, inputs, place):
    """Python's reader stops there without a word; so it does where two tars were put together."""
    data = inputs.tar(tmp_path / "a.tar", {"a.txt": b"a" * 600, "b.txt": b"b"}).read_bytes()
    header = 3 * 512  # of the second member
    data, fault = {
        "before a header": (data[:header], "cut off"),
        "within a header": (data[: header + 100], "cut off"),
        "a broken header": (data[:header] + b"?" * 512 + data[header + 512 :], "byte 1,536"),
        "tars": (data * 2, "byte 2,560"),
    }[place]
    (tmp_path / "a.tar").write_bytes(data)
    plan = cut_input(str(tmp_path), 10)
    assert fault in plan.lost[str(tmp_path / "a.tar")]
    keys = ["a", "b"] if place == "tars" else ["a"]
    assert read_plan(plan)["key"].to_pylist() == keys


def test_the_key_of_a_sample_is_its_name(tmp_path, inputs):
    """Whatever its members are called, and where a tar was packed one folder further down."""
    path = inputs.tar(tmp_path / "a.tar", {"../a.txt": b"one", "../a.key": b"other"})
    assert columns(read_all(path), "key", "text") == [("../a", "one")]
