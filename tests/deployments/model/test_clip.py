"""What ClipModel promises around its towers: order, batches, tasks, widths and refusals."""

import numpy as np
import pytest
import torch
from PIL import Image

from deployments.model import ClipModel
from deployments.model.errors import OptionError, TextTooLongError
from deployments.model.pictures.seeing import Seeing

TASK = "retrieval.query"
PREFIX = "Represent the query for retrieving evidence documents: "
TEXTS = ["red apple", "", "x", "赤いリンゴと富士山", "sail boat " * 200, "red <pad> apple", "x y"]


def pictures(count: int, size: int = 40) -> list[Image.Image]:
    random = np.random.default_rng(1)
    noise = random.integers(0, 256, (count, size, size + 9, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in noise]


def test_a_text_is_the_same_alone_and_in_any_batch(reduced) -> None:
    """Rows do not depend on what else is in the batch, whatever the lengths."""
    alone = np.concatenate([reduced.encode_text([text]) for text in TEXTS])
    for batch_size in (1, 2, 3, 64):
        rows = reduced.encode_text(TEXTS, batch_size=batch_size)
        np.testing.assert_allclose(rows, alone, rtol=0, atol=1e-5)


def test_a_picture_is_the_same_alone_and_in_any_batch(reduced) -> None:
    """Rows do not depend on what else is in the batch."""
    images = pictures(5)
    alone = np.concatenate([reduced.encode_image([image]) for image in images])
    for batch_size in (1, 2, 5):
        rows = reduced.encode_image(images, batch_size=batch_size)
        np.testing.assert_allclose(rows, alone, rtol=0, atol=1e-5)


def test_order_is_kept(reduced) -> None:
    """Shuffled inputs give the same rows, shuffled; neighbours of the same row are far apart."""
    texts = [f"{'word ' * (i * 7 % 11)}{i}" for i in range(30)]
    order = np.random.default_rng(2).permutation(len(texts))
    rows = reduced.encode_text(texts, batch_size=7)
    shuffled = reduced.encode_text([texts[i] for i in order], batch_size=7)
    np.testing.assert_allclose(shuffled, rows[order], rtol=0, atol=1e-5)
    moved = order != np.arange(len(texts))
    assert np.abs(shuffled - rows)[moved].max(axis=1).min() > 1e-3


def test_the_order_of_pictures_is_kept(reduced) -> None:
    """Reversed pictures give reversed rows."""
    images = pictures(5)
    rows, reverse = (reduced.encode_image(x, batch_size=2) for x in (images, images[::-1]))
    np.testing.assert_allclose(reverse, rows[::-1], rtol=0, atol=1e-5)
    assert np.abs(reverse[0] - rows[0]).max() > 1e-3


def test_a_task_only_adds_its_prefix(reduced) -> None:
    """The query task equals the prefix written by hand, so the adapter does not depend on it."""
    rows = reduced.encode_text(TEXTS, task=TASK)
    by_hand = reduced.encode_text([PREFIX + text for text in TEXTS])
    np.testing.assert_array_equal(rows, by_hand)
    without_space = reduced.encode_text([PREFIX.strip() + text for text in TEXTS])
    assert np.abs(rows - without_space)[0].max() > 1e-3


def test_the_last_pixels_are_never_seen(demo) -> None:
    """The 8 right and bottom pixels beyond the last whole patch change nothing; the 9th does."""
    size = demo.architecture.vision.image_size
    edge = size - size % demo.architecture.vision.patch_size
    assert size - edge == 8
    base = np.full((1, size, size, 3), 90, dtype=np.uint8)
    unseen, seen = base.copy(), base.copy()
    unseen[:, edge:] = 255
    unseen[:, :, edge:] = 0
    seen[:, edge - 1] = 255
    rows = demo.embed_pixels(np.concatenate([base, unseen, seen]))
    np.testing.assert_allclose(rows[1], rows[0], rtol=0, atol=1e-5)
    assert np.abs(rows[2] - rows[0]).max() > 1e-2


@pytest.mark.parametrize("width", [1, 2, 31, 64, 87, 88])
def test_rows_are_cut_before_they_are_normalised(reduced, width) -> None:
    """A row is the start of the raw row scaled to length 1, not the start of the full row."""
    raw = reduced.encode_text(["red apple"], normalized=False)[0].astype(np.float64)
    full = reduced.encode_text(["red apple"])[0]
    row = reduced.encode_text(["red apple"], dimensions=width)[0]
    np.testing.assert_allclose(row, raw[:width] / np.linalg.norm(raw[:width]), rtol=0, atol=1e-6)
    assert width == reduced.width or np.abs(row - full[:width]).max() > 1e-4


def test_pictures_take_dimensions_too(reduced) -> None:
    """A width cuts picture rows as it cuts text rows; raw rows are not of length 1."""
    raw = reduced.encode_image(pictures(2), dimensions=30, normalized=False)
    rows = reduced.encode_image(pictures(2), dimensions=30)
    np.testing.assert_allclose(rows, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-6)
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).min() > 0.1


def test_no_input_gives_no_rows(reduced) -> None:
    """Empty lists give empty float32 matrices of the width asked for."""
    assert reduced.encode_text([]).shape == (0, 88)
    assert reduced.encode_image([], dimensions=12).shape == (0, 12)
    assert reduced.encode_text([]).dtype == np.float32


@pytest.mark.parametrize("dimensions", [0, -1, 5000, 89, True])
def test_widths_out_of_range_are_refused(reduced, dimensions) -> None:
    """The message holds the width asked for and the full one."""
    for encode, items in ((reduced.encode_text, ["x"]), (reduced.encode_image, pictures(1))):
        with pytest.raises(OptionError, match=f"dimensions is {dimensions}; .* 1 to 88"):
            encode(items, dimensions=dimensions)


def test_an_unknown_task_is_refused(reduced) -> None:
    """Only the trained prefix exists; the name asked for and the right one are in the message."""
    with pytest.raises(OptionError, match=r"'retrieval\.passage'; choose 'retrieval\.query'"):
        reduced.encode_text(["x"], task="retrieval.passage")


def test_one_input_instead_of_a_list_is_refused(reduced) -> None:
    """A bare string or picture is not taken for a list of its characters or bytes."""
    with pytest.raises(TypeError, match="write \\[text\\]"):
        reduced.encode_text("red apple")
    for image in (pictures(1)[0], b"bytes"):
        with pytest.raises(TypeError, match="write \\[image\\]"):
            reduced.encode_image(image)


def test_a_broken_picture_is_named_by_its_place(reduced) -> None:
    """The index of the bad picture is counted over all batches."""
    with pytest.raises(ValueError, match="image 3: "):
        reduced.encode_image([*pictures(3), b"no picture"], batch_size=2)


def test_long_texts_are_refused_or_cut_on_request(reduced) -> None:
    """Nothing is cut silently: over max_length is an error unless truncate is set."""
    with pytest.raises(TextTooLongError, match=r"text 1: .* the limit is 16"):
        reduced.encode_text(["x", "sail boat " * 20], max_length=16)
    cut = reduced.encode_text(["sail boat " * 20], max_length=16, truncate=True)
    assert np.abs(cut - reduced.encode_text(["sail boat " * 20])).max() > 1e-3


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_one_tower_alone_gives_the_same_rows(reduced, reduced_folder, tower) -> None:
    """The loaded tower works as ever, the other one says that it is not there."""
    model = ClipModel.load(reduced_folder, towers=(tower,))
    if tower == "text":
        np.testing.assert_array_equal(model.encode_text(TEXTS), reduced.encode_text(TEXTS))
        with pytest.raises(OptionError, match="vision tower is not loaded"):
            model.encode_image(pictures(1))
    else:
        images = pictures(2)
        np.testing.assert_array_equal(model.encode_image(images), reduced.encode_image(images))
        with pytest.raises(OptionError, match="text tower is not loaded"):
            model.encode_text(["x"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "abacus"}, "device is 'abacus'"),
        ({"device": "cuda"}, "device is 'cuda', but torch sees no GPU"),
        ({"dtype": "float8"}, "dtype is 'float8'"),
        ({"attention": "telepathy"}, "attention is 'telepathy'"),
        ({"implementation": "magic"}, "implementation is 'magic'"),
        ({"towers": ()}, "towers is"),
        ({"towers": ("text", "audio")}, "audio"),
    ],
)
def test_unknown_options_of_load_are_refused(monkeypatch, options, message) -> None:
    """Each message names the option and the value, before any weight is read."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OptionError, match=message):
        ClipModel.load("demo", **options)


def test_auto_is_float32_on_a_cpu(reduced, reduced_folder, monkeypatch) -> None:
    """Without a GPU, automatic device and dtype give the rows of a float32 CPU model."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = ClipModel.load(reduced_folder, device="auto", dtype="auto")
    np.testing.assert_array_equal(model.encode_text(TEXTS), reduced.encode_text(TEXTS))


def test_bfloat16_stays_near_float32(demo) -> None:
    """Rows computed in bfloat16 come out as unit float32 rows at cosine 0.9995 or more."""
    model = ClipModel.load("demo", dtype="bfloat16")
    texts = ["red apple", "a photo of a cat sleeping on the moon", "赤いリンゴと富士山"]
    for encode, items in (("encode_text", texts), ("encode_image", pictures(3))):
        half, full = getattr(model, encode)(items), getattr(demo, encode)(items)
        assert half.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1, atol=1e-6)
        assert (half * full).sum(axis=1).min() >= 0.9995
        assert np.abs(half - full).max() > 1e-5


def test_the_fingerprint_is_that_of_the_rows_not_of_the_kernel_that_made_them():
    """Compiled or not, it is the same; another precision or other pixels change it."""
    towers = ("vision",)
    plain = ClipModel.load(towers=towers)
    assert ClipModel.load(towers=towers, compile="on").fingerprint == plain.fingerprint
    others = [ClipModel.load(towers=towers, dtype="bfloat16")]
    others.append(ClipModel.load(towers=towers, image_decode="draft"))
    others.append(ClipModel.load(towers=towers, seeing=Seeing(exif=True)))
    assert len({plain.fingerprint, *(model.fingerprint for model in others)}) == 4


def test_how_images_are_read_leaves_the_text_towers_fingerprint():
    """Rows of texts may be kept whatever is done with images; another precision changes it."""
    towers = ("text",)
    plain = ClipModel.load(towers=towers)
    seen = ClipModel.load(towers=towers, image_decode="draft", seeing=Seeing(exif=True))
    assert seen.fingerprint == plain.fingerprint
    assert ClipModel.load(towers=towers, dtype="bfloat16").fingerprint != plain.fingerprint
