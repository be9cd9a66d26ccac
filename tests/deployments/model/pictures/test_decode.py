from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from deployments.model import ClipModel
from deployments.model.errors import ImageError, OptionError
from deployments.model.pictures import decode
from deployments.model.pictures.decode import Decoder, gpu_suits, resize, resolve
from deployments.model.pictures.image import open_image, to_pixels

CPU = torch.device("cpu")


def picture(width: int = 90, height: int = 60, mode: str = "RGB") -> Image.Image:
    """A smooth picture with some detail, as photographs have."""
    random = np.random.default_rng(3)
    coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=float)
    noisy = smooth + random.normal(0, 8, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def on_cpu(images: list[bytes], device: torch.device) -> list[torch.Tensor]:
    """Stand in for the GPU's decoder: fails for all where one is broken, as that one does."""
    decoded = [np.array(Image.open(BytesIO(data)).convert("RGB")) for data in images]
    if any(data[-3:-2] == b"!" for data in images):
        raise RuntimeError("nvjpeg: bad")
    return [torch.from_numpy(pixels).permute(2, 0, 1) for pixels in decoded]


@pytest.fixture
def gpu_decoder(monkeypatch: pytest.MonkeyPatch) -> Decoder:
    """A decoder that takes its GPU path, with another decoder underneath."""
    monkeypatch.setattr(decode, "decode_jpegs", on_cpu)
    decoder = Decoder(40, CPU)
    decoder._gpu = True
    stream = SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    return decoder


def test_exact_decoding_is_that_of_one_picture_and_failures_keep_to_themselves():
    """Good pictures come in order beside the errors of the broken ones, by index."""
    good = [encoded(picture(90 + i, 60)) for i in range(3)]
    decoded = Decoder(40, CPU).decode([good[0], b"", good[1], b"no picture", picture(50, 80)])
    assert decoded.kept == [0, 2, 4]
    assert sorted(decoded.failures) == [1, 3]
    assert all(isinstance(error, ImageError) for error in decoded.failures.values())
    expected = [to_pixels(open_image(data), 40) for data in good[:2]] + [
        to_pixels(picture(50, 80), 40)
    ]
    np.testing.assert_array_equal(decoded.pixels, np.stack(expected))


def test_a_batch_without_a_good_picture_is_empty():
    """All failures give no pixels, of the right shape."""
    decoded = Decoder(40, CPU).decode([b"", b"x"])
    assert decoded.pixels.shape == (0, 40, 40, 3)
    assert decoded.kept == []


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (500, 37), (41, 40), (40, 40), (1280, 960)])
def test_the_gpus_resize_has_pillows_geometry_and_filter(size: tuple[int, int]):
    """Torch's antialiased bicubic resize and crop differ from Pillow's by roundings only."""
    image = picture(*size)
    ours = resize(torch.from_numpy(np.array(image)).permute(2, 0, 1), 40).numpy().astype(int)
    gap = np.abs(ours - to_pixels(image, 40))
    assert gap.max() <= 2
    assert gap.mean() < 0.3
    shifted = np.abs(np.roll(ours, 1, axis=1) - to_pixels(image, 40))
    assert shifted.mean() > 1


@pytest.mark.parametrize(
    ("data", "suited"),
    [
        (encoded(picture()), True),
        (encoded(picture(mode="L")), True),
        (encoded(picture(), progressive=True), True),
        (encoded(picture()) + b"\0\0", True),
        (encoded(picture(mode="CMYK")), False),
        (encoded(picture(), keep_rgb=True), False),
        (encoded(picture())[:-200], False),
        (encoded(picture(), "PNG"), False),
        (encoded(picture(1000, 10)), False),
    ],
    ids=["rgb", "gray", "progressive", "padded", "cmyk", "rgb stored", "cut off", "png", "narrow"],
)
def test_only_jpegs_that_both_decoders_read_alike_go_to_the_gpu(data: bytes, suited: bool):
    """Other formats, four channels, unconverted RGB and cut-off files take the exact path."""
    assert gpu_suits(data, open_image(data), 40) is suited


def test_a_picture_over_the_devices_limit_takes_the_exact_path(monkeypatch: pytest.MonkeyPatch):
    """Pixels over the limit would need too much memory as float32."""
    monkeypatch.setattr(decode, "GPU_MAX_PIXELS", 90 * 60 - 1)
    data = encoded(picture())
    assert not gpu_suits(data, open_image(data), 40)


def test_mixed_batches_keep_their_order_on_the_gpu_path(gpu_decoder: Decoder):
    """JPEGs from the GPU, others from the exact path and failures keep to their places."""
    images = [encoded(picture(80, 60)), encoded(picture(60, 80), "PNG"), b"?", encoded(picture())]
    decoded = gpu_decoder.decode(images)
    assert decoded.kept == [0, 1, 3]
    assert list(decoded.failures) == [2]
    exact = Decoder(40, CPU).decode(images).pixels.astype(int)
    gaps = np.abs(decoded.pixels.numpy() - exact).max(axis=(1, 2, 3))
    assert gaps[1] == 0
    assert gaps.max() <= 2


def test_what_the_gpu_refuses_is_decoded_exactly(gpu_decoder: Decoder):
    """A JPEG that fails the whole group on the GPU leaves all of it to the exact path."""
    bad = encoded(picture()).removesuffix(b"\xff\xd9") + b"!\xff\xd9"
    images = [encoded(picture(70, 60)), bad]
    decoded = gpu_decoder.decode(images)
    assert decoded.failures == {}
    np.testing.assert_array_equal(decoded.pixels, Decoder(40, CPU).decode(images).pixels)


def test_groups_keep_to_the_devices_pixel_budget(
    gpu_decoder: Decoder, monkeypatch: pytest.MonkeyPatch
):
    """Large pictures are decoded in several groups, each within the budget."""
    groups: list[int] = []

    def counted(images: list[bytes], device: torch.device) -> list[torch.Tensor]:
        groups.append(len(images))
        return on_cpu(images, device)

    monkeypatch.setattr(decode, "decode_jpegs", counted)
    monkeypatch.setattr(decode, "GPU_GROUP_PIXELS", 2 * 90 * 60)
    gpu_decoder.decode([encoded(picture())] * 5)
    assert groups == [2, 2, 1]


def test_modes_resolve_to_what_runs_here():
    """Without a GPU `auto` is exact, `gpu` is refused with the reason, others are unknown."""
    assert resolve("auto", CPU) == resolve("exact", CPU) == "exact"
    assert resolve("draft", CPU) == "draft"
    with pytest.raises(OptionError, match="'gpu' does not run on cpu: it is no GPU"):
        resolve("gpu", CPU)
    with pytest.raises(OptionError, match="'fast'; choose one of auto, exact, draft, gpu"):
        resolve("fast", CPU)


def test_auto_on_a_gpu_without_its_decoder_is_exact(monkeypatch: pytest.MonkeyPatch):
    """Nobody gets other pixels than the published ones from the host unless they ask for it."""
    monkeypatch.setattr(decode, "decode_jpegs", lambda *_: (_ for _ in ()).throw(RuntimeError()))
    assert resolve("auto", torch.device("cuda")) == "exact"
    monkeypatch.setattr(decode, "decode_jpegs", on_cpu)
    assert resolve("auto", torch.device("cuda")) == "gpu"


@pytest.mark.parametrize("size", [(640, 481), (333, 500), (1203, 901)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_draft_decoding_differs_from_exact_by_roundings(size: tuple[int, int], mode: str):
    """Smaller decoding keeps geometry and colours; one pixel's shift would be a larger gap."""
    data = encoded(picture(*size, mode=mode), quality=95)
    (draft,) = Decoder(40, CPU, "draft").decode([data]).pixels.astype(int)
    exact = to_pixels(open_image(data), 40).astype(int)
    assert 0 < np.abs(draft - exact).mean() < 1
    assert np.abs(np.roll(draft, 1, axis=1) - exact).mean() > 1


def test_draft_decoding_decodes_fewer_pixels_but_twice_the_models():
    """Of 640 x 480 for a side of 40 the quarter is enough; small JPEGs and PNGs stay exact."""
    image = open_image(encoded(picture(640, 480)))
    to_pixels(image, 40, draft=True)
    assert image.size == (160, 120)
    for data in (encoded(picture(150, 120)), encoded(picture(640, 480), "PNG")):
        (draft,) = Decoder(40, CPU, "draft").decode([data]).pixels
        np.testing.assert_array_equal(draft, to_pixels(open_image(data), 40))


def test_rows_of_draft_pictures_keep_the_documented_cosine(demo: ClipModel, golden):
    """Photographs of 3 megapixels, decoded small, give rows within cosine 0.9999."""
    shots = [Image.open(BytesIO(data)).convert("RGB") for data in golden.image_bytes()[:3]]
    photos = [encoded(x.resize((2000, 1500), Image.Resampling.BICUBIC)) for x in shots]
    size = demo.architecture.vision.image_size
    exact = demo.embed_pixels(Decoder(size, CPU).decode(photos).pixels)
    draft = demo.embed_pixels(Decoder(size, CPU, "draft").decode(photos).pixels)
    norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(draft, axis=1)
    assert ((exact * draft).sum(axis=1) / norms).min() > 0.9999
    assert np.abs(exact - draft).max() > 1e-6


def test_a_broken_image_fails_alone(demo: ClipModel, golden):
    """It has an error and no pixels; its neighbours keep their vectors."""
    images = golden.image_bytes()[:3]
    decoded = demo.decode_images([images[0], b"broken", *images[1:]])
    rows = demo.embed_pixels(decoded.pixels)
    np.testing.assert_allclose(rows, golden.arrays["image_raw"][:3], atol=1e-5)
    assert (decoded.kept, list(decoded.failures)) == ([0, 2, 3], [1])


def test_encode_image_names_the_broken_picture_in_a_later_batch(demo: ClipModel, golden):
    """The index is that of the caller's list, although batches are decoded ahead."""
    images = [*golden.image_bytes()[:3], b"broken"]
    with pytest.raises(ImageError, match="image 3: the 6 bytes"):
        demo.encode_image(images, batch_size=2)
