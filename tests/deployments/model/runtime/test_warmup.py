"""A warm-up has run whatever traffic can make a library compile or plan anew."""

from types import SimpleNamespace

import numpy as np
import torch

from deployments.model.architecture import TextArchitecture, VisionArchitecture
from deployments.model.runtime.warmup import timely, warm_text, warm_vision
from deployments.model.towers.attention import LONG_CONTEXT
from deployments.model.towers.packing import pack

GPU = torch.device("cuda")
MAX_TOKENS, MAX_TEXTS, MAX_IMAGES = 16384, 512, 32
# FlashAttention-4 compiles anew for more texts than this.
FEW_TEXTS = 256


class Keys:
    """Stands for a tower: notes what its kernels would be compiled or planned for."""

    attention = "a fake"

    def __init__(self, key):
        self.key, self.seen = key, set()

    def launch(self, batch):
        self.seen.add(self.key(batch))
        return SimpleNamespace(rows=lambda: None)

    def capture(self, _):
        pass


def kernel_of_texts(batch):
    """Return which kernel runs: that for long texts also by the number of texts."""
    segments = pack(batch, 1).segments
    is_long = segments.mean_context > LONG_CONTEXT
    return ("long", len(batch) > FEW_TEXTS) if is_long else ("short",)


def random_batch(random):
    """Return texts of a kind, as many as a random budget takes."""
    budget, kind = random.integers(2, MAX_TOKENS + 1), random.integers(4)
    most = (8, 64, 600, 8192)[kind]
    lengths = random.integers(2, most + 1, MAX_TEXTS)
    if random.random() < 0.3:
        lengths[0] = random.integers(2, 8193)
    count = max(1, int((np.cumsum(lengths) <= budget).sum()))
    return [np.zeros(length, np.int32) for length in lengths[:count]]


def test_ten_thousand_batches_run_no_kernel_that_the_warm_up_has_not_run(gpu):
    """Texts of all lengths and numbers; without its third extreme a warm-up would miss some."""
    runner = Keys(kernel_of_texts)
    warm_text(runner, TextArchitecture(), GPU, MAX_TOKENS, MAX_TEXTS)
    warm = set(runner.seen)
    random = np.random.default_rng(0)
    runner.seen.clear()
    for _ in range(10_000):
        runner.launch(random_batch(random))
    assert runner.seen <= warm
    assert runner.seen == {("short",), ("long", False), ("long", True)}


def test_every_number_of_images_is_warm(gpu):
    """CuDNN plans for each, and the compiler takes 1 for itself."""
    runner = Keys(len)
    warm_vision(runner, VisionArchitecture(image_size=28), GPU, MAX_IMAGES)
    assert runner.seen == set(range(1, MAX_IMAGES + 1))


def test_a_batch_of_about_a_tenth_of_a_second_is_a_whole_number_of_steps():
    """A fast card keeps its budget, a very slow one has a step, and a small budget stays."""
    assert timely(16384, 25, 256) == 16384
    assert timely(16384, 400, 256) == 4096
    assert timely(16384, 430, 256) == 3584
    assert timely(16384, 1e6, 256) == 256
    assert timely(100, 200, 256) == 100
    assert timely(32, 380, 1) == 8
