"""Decoding on an emulated GPU, from several threads that share its stream and its memory."""

import threading
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from deployments.model.pictures import decode
from deployments.model.pictures.decode import Decoder
from deployments.model.pictures.image import open_image, to_pixels
from tests.deployments.model.pictures.test_decode import encoded, picture

GPU = torch.device("cuda")
SIZE = 40
WAIT_S = 60


def on_host(pixels):
    return pixels.host.numpy() if isinstance(pixels, torch.Tensor) else pixels


def test_jpegs_are_decoded_on_the_gpu_and_others_are_moved_there(gpu):
    """The pixels are there when `decode` returns; a broken picture fails alone."""
    images = [encoded(picture(80, 60)), b"?", encoded(picture(60, 80), "PNG"), encoded(picture())]
    decoded = Decoder(SIZE, GPU, "gpu").decode(images)
    assert (decoded.kept, list(decoded.failures)) == ([0, 2, 3], [1])
    assert decoded.pixels.device == torch.device("cuda:0")
    good = [images[index] for index in decoded.kept]
    exact = np.stack([to_pixels(open_image(x), SIZE) for x in good])
    gaps = np.abs(on_host(decoded.pixels).astype(int) - exact)
    assert gaps[1].max() == 0
    assert 0 < gaps.max() <= 2


class TwoThreads:
    """Lets a second thread decode between what the first has queued and its running.

    The second goes as far as the decoder's lock lets it.
    """

    def __init__(self, gpu, monkeypatch, decoder):
        self.decoder = decoder
        self.second = threading.Thread(target=self.decode_second)
        self.second_decodes, self.first_is_queued, self.second_wrote = (
            threading.Event() for _ in range(3)
        )
        self._decode, self._resize = decode.decode_jpegs, decode.resize
        monkeypatch.setattr(decode, "decode_jpegs", self.decode_jpegs)
        monkeypatch.setattr(decode, "resize", self.resize)
        self._stream = gpu

    @property
    def locked(self):
        lock = self.decoder._decoding
        return not isinstance(lock, nullcontext) and lock.locked()

    def run(self, first, second):
        """Return the pixels of both pictures."""
        self.pictures, self.pixels = second, []
        mine = self.decoder.decode([first]).pixels
        self.second.join(WAIT_S)
        return on_host(mine), on_host(self.pixels[0])

    def decode_second(self):
        self.pixels.append(self.decoder.decode([self.pictures]).pixels)

    def decode_jpegs(self, images, device):
        if threading.current_thread() is self.second:
            self.second_decodes.set()
            assert self.first_is_queued.wait(WAIT_S)
            decoded = self._decode(images, device)
            self.second_wrote.set()
            return decoded
        self.second.start()
        assert self.locked or self.second_decodes.wait(WAIT_S)
        return self._decode(images, device)

    def resize(self, image, size):
        resized = self._resize(image, size)
        if threading.current_thread() is not self.second:
            self.first_is_queued.set()
            assert self.locked or self.second_wrote.wait(WAIT_S)
        return resized


@pytest.mark.parametrize("has_lock", [True, False], ids=["as it is", "without the lock"])
def test_threads_do_not_get_each_others_pixels(gpu, monkeypatch, has_lock):
    """The decoder writes on a stream of its own, into memory that queued work may still read."""
    first, second = (encoded(picture(80 + i, 60).rotate(180 * i)) for i in range(2))
    alone = Decoder(SIZE, GPU, "gpu")
    expected = [on_host(alone.decode([x]).pixels).copy() for x in (first, second)]
    decoder = Decoder(SIZE, GPU, "gpu")
    if not has_lock:
        decoder._decoding = nullcontext()
    pixels = TwoThreads(gpu, monkeypatch, decoder).run(first, second)
    same = [(ours == theirs).all() for ours, theirs in zip(pixels, expected, strict=True)]
    assert all(same) == has_lock


@pytest.mark.parametrize("order", ["as it is", "without waiting"])
def test_a_group_is_done_before_the_next_is_decoded(gpu, monkeypatch, order):
    """One thread alone would overwrite what its last group still reads."""
    first, second = (encoded(picture(80 + i, 60).rotate(180 * i)) for i in range(2))
    expected = Decoder(SIZE, GPU, "gpu").decode([first, second]).pixels
    monkeypatch.setattr(decode, "GPU_GROUP_PIXELS", 90 * 60)
    decoder = Decoder(SIZE, GPU, "gpu")
    if order == "without waiting":
        monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: nullcontext())
        monkeypatch.setattr(nullcontext, "synchronize", lambda _: None, raising=False)
    pixels = decoder.decode([first, second]).pixels
    gpu.run_all()
    assert (on_host(pixels) == on_host(expected)).all() == (order == "as it is")
